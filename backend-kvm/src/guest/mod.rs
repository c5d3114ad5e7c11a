//! A small guest that checks its own memory.
//!
//! A few processes, each with page tables of its own, share every vCPU under a kernel of some fifty
//! instructions, which a timer enters a thousand times a second. Every process has code, data that
//! is not executable, and a file that all of them read. Each byte of it is a function of (process,
//! page, version): a process checks a page as a whole before it uses it, and some of the time
//! writes it anew, one version on. It also checks that time does not go back and that its vector
//! registers are its own. Whatever is wrong ends the guest, which says what and where.
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

use crate::error::KvmError;
use crate::machine::{Host, Machine};
use crate::memory::{PageSize, Ram};
use kaleidoscope_core::addr::Gpa;
use kvm_bindings::{kvm_dtable, kvm_segment};
use std::sync::Arc;

/// A guest of this plan in a machine of its own, which does not run yet, and what hears its
/// complaints.
///
/// # Errors
/// [`KvmError`] when KVM or the system refuses, or the plan does not fit its memory.
pub fn boot(host: &Arc<Host>, plan: &Plan) -> Result<(Machine, Arc<CheckPort>), KvmError> {
    boot_on(host, plan, PageSize::Small)
}

/// The same, on pages of that size.
///
/// # Errors
/// As for [`boot`].
pub fn boot_on(
    host: &Arc<Host>,
    plan: &Plan,
    pages: PageSize,
) -> Result<(Machine, Arc<CheckPort>), KvmError> {
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
        // Protection, paging, write protection of the kernel's own writes; SSE; long mode,
        // no-execute.
        (sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3) = (0x8005_0033, 0x620, 0xd00, start.tables);
        // The local interrupt controller by registers (x2APIC), so that the kernel needs no mapping
        // of it.
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

/// A flat segment of the kernel.
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

/// Copies bytes of the guest.
pub type ReadGuest<'r, E> = dyn FnMut(Gpa, &mut [u8]) -> Result<(), E> + 'r;

/// How often each process has been around, in the order of [`Plan::processes`]; `read` copies bytes
/// of the guest.
///
/// # Errors
/// Whatever `read` says.
pub fn progress<E>(plan: &Plan, read: &mut ReadGuest<'_, E>) -> Result<Vec<u64>, E> {
    let rounds = plan.processes().iter().map(|process| {
        let mut bytes = [0; 8];
        read(process.status, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    });
    rounds.collect()
}
