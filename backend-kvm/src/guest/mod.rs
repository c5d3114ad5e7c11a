//! A small guest that checks its own memory.
//!
//! A few processes with page tables of their own share each vCPU under a kernel of some fifty
//! instructions. A timer enters the kernel a thousand times a second. Every process has code, data
//! that is not executable, and a file that all processes read. Each byte of the data is a function
//! of (process, page, version). A process checks a whole page before using it, and sometimes
//! rewrites the page with the next version. It also checks that time does not go backwards, and
//! that its vector registers keep their values. Any mismatch stops the guest, which reports what
//! was wrong and where.
//!
//! The processes run at full speed wherever a vCPU's user mode does; the kernel's instructions may
//! be emulated.

pub mod baseline;
mod check_port;
mod content;
mod kernel;
mod plan;
mod process;
mod tables;
mod verify;

pub use check_port::{CheckFailure, CheckPort};
pub use kernel::NOTICE;
pub use plan::{Plan, ProcessPlan};
pub use verify::{Mismatch, verify};

use crate::error::Error;
use crate::machine::{Host, Machine};
use crate::memory::{PageSize, Ram};
use kaleidoscope_core::addr::Gpa;
use kvm_bindings::{kvm_dtable, kvm_segment};
use std::sync::Arc;

/// Creates a machine with a guest of this plan on 4 KiB pages, paused, and the device that records
/// the guest's check failures.
///
/// # Errors
/// [`Error`] when KVM or the system refuses a request, or the plan does not fit its memory.
pub fn boot(host: &Arc<Host>, plan: &Plan) -> Result<(Machine, Arc<CheckPort>), Error> {
    boot_on(host, plan, PageSize::Small)
}

/// As [`boot`], on pages of the given size.
///
/// # Errors
/// As for [`boot`].
pub fn boot_on(
    host: &Arc<Host>,
    plan: &Plan,
    pages: PageSize,
) -> Result<(Machine, Arc<CheckPort>), Error> {
    let check_port = Arc::new(CheckPort::default());
    let ram = Ram { layout: plan.layout()?, pages };
    let machine = Machine::new(host, ram, plan.vcpus(), Arc::clone(&check_port) as _)?;
    plan.load(&mut |gpa, bytes| machine.write(gpa, bytes))?;
    for vcpu in 0..plan.vcpus() {
        let start = plan.start(vcpu)?;
        let (mut regs, mut sregs) = machine.registers(vcpu)?;
        regs.rip = start.entry;
        regs.rsp = start.stack;
        regs.rflags = 2;
        // Protection, paging, write protection in kernel mode; SSE; long mode, no-execute.
        (sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3) = (0x8005_0033, 0x620, 0xd00, start.tables);
        // The local APIC in x2APIC mode, so that the kernel needs no mapping of it.
        sregs.apic_base |= 0xc00;
        sregs.cs = segment(0x08, 0xb, 1);
        sregs.ss = segment(0x10, 0x3, 0);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (sregs.ss, sregs.ss, sregs.ss, sregs.ss);
        sregs.tr = kvm_segment {
            base: start.task,
            limit: 0x67,
            selector: 0x28,
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        sregs.gdt = kvm_dtable { base: start.segments, limit: 0x37, ..Default::default() };
        sregs.idt = kvm_dtable { base: start.gates, limit: 0xfff, ..Default::default() };
        machine.set_registers(vcpu, &regs, &sregs)?;
    }
    Ok((machine, check_port))
}

/// A flat kernel segment.
fn segment(selector: u16, type_: u8, long: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    }
}

/// A function that copies bytes of the guest into the buffer.
pub type ReadGuest<'r, E> = dyn FnMut(Gpa, &mut [u8]) -> Result<(), E> + 'r;

/// The number of rounds that each process has completed, in the order of [`Plan::processes`].
/// `read` copies bytes of the guest.
///
/// # Errors
/// Any error of `read`.
pub fn progress<E>(plan: &Plan, read: &mut ReadGuest<'_, E>) -> Result<Vec<u64>, E> {
    let rounds = plan.processes().iter().map(|process| {
        let mut bytes = [0; 8];
        read(process.status, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    });
    rounds.collect()
}
