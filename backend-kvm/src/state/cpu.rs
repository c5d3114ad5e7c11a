//! State of a vCPU.

use super::damaged;
use crate::error::{Asked, Error, ErrorKind};
use crate::sys::VcpuHandle;
use kaleidoscope_core::registers::VcpuRegisters;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

/// Maximum number of MSRs per call (`KVM_MAX_MSR_ENTRIES` in the kernel).
const MAX_MSRS: usize = 256;

/// Deadline MSR of the local APIC timer. It is loaded last, after the timer and the time stamp
/// counter.
const TSC_DEADLINE: u32 = 0x6e0;

/// The state of a vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    pub(crate) regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    debug: kvm_debugregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    msrs: Vec<kvm_msr_entry>,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp: kvm_mp_state,
    tsc_khz: u32,
}

/// Reads the MSRs of the list that the vCPU has.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
    let state = |error| damaged(format!("MSRs: {error}"));
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let part = rest.get(..rest.len().min(MAX_MSRS)).unwrap_or_default();
        let wanted: Vec<_> = part
            .iter()
            .map(|index| kvm_msr_entry { index: *index, ..Default::default() })
            .collect();
        let mut msrs = Msrs::from_entries(&wanted).map_err(state)?;
        let read = vcpu.get_msrs(&mut msrs).asked("saving MSRs")?;
        found.extend(msrs.as_slice().iter().take(read));
        // KVM stops at the first MSR that this vCPU does not have, even if KVM lists it.
        let passed = if read < part.len() { read + 1 } else { read };
        rest = rest.get(passed..).unwrap_or_default();
    }
    Ok(found)
}

/// Loads MSRs. An MSR that is zero and cannot be loaded is skipped: a new vCPU has zero there
/// anyway.
fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), Error> {
    let mut rest = entries;
    while !rest.is_empty() {
        let part = rest.get(..rest.len().min(MAX_MSRS)).unwrap_or_default();
        let msrs = Msrs::from_entries(part).map_err(|error| damaged(format!("MSRs: {error}")))?;
        let written = vcpu.set_msrs(&msrs).asked("loading MSRs")?;
        let mut passed = written;
        if let Some(refused) = part.get(written) {
            if refused.data != 0 {
                let what = format!(
                    "saved machine state: MSR {:#x} cannot hold {:#x} here",
                    refused.index, refused.data
                );
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
            passed += 1;
        }
        rest = rest.get(passed..).unwrap_or_default();
    }
    Ok(())
}

/// The registers that describe the guest's address space.
pub(crate) fn registers(cpu: usize, regs: &kvm_regs, sregs: &kvm_sregs) -> VcpuRegisters {
    VcpuRegisters {
        cpu: u32::try_from(cpu).unwrap_or(u32::MAX),
        rip: regs.rip,
        rsp: regs.rsp,
        cr0: Some(sregs.cr0),
        cr3: Some(sregs.cr3),
        cr4: Some(sregs.cr4),
        efer: Some(sregs.efer),
        long_mode: None,
        gs_base: Some(sregs.gs.base),
        kernel_gs_base: None,
        idt_base: Some(sregs.idt.base),
        gdt_base: Some(sregs.gdt.base),
        cpl: Some(sregs.ss.dpl),
    }
}

/// The GS base that `swapgs` exchanges (`MSR_KERNEL_GS_BASE`).
const KERNEL_GS_BASE: u32 = 0xc000_0102;

impl CpuState {
    /// The registers that describe the guest's address space.
    pub(crate) fn registers(&self, cpu: usize) -> VcpuRegisters {
        let kernel_gs = self.msrs.iter().find(|msr| msr.index == KERNEL_GS_BASE);
        let kernel_gs_base = kernel_gs.map(|msr| msr.data);
        VcpuRegisters { kernel_gs_base, ..registers(cpu, &self.regs, &self.sregs) }
    }

    /// Saves the state of a vCPU that is stopped, with those of the listed MSRs that it has. KVM
    /// dictates the order: the first calls settle pending work, which the later ones read.
    pub(crate) fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, Error> {
        let mp = vcpu.get_mp_state().asked("saving a vCPU's run state")?;
        let regs = vcpu.get_regs().asked("saving registers")?;
        let sregs = vcpu.get_sregs().asked("saving system registers")?;
        let xsave = vcpu.get_xsave().asked("saving vector registers")?;
        let xcrs = vcpu.get_xcrs().asked("saving extended control registers")?;
        let debug = vcpu.get_debug_regs().asked("saving debug registers")?;
        let lapic = vcpu.get_lapic().asked("saving a local interrupt controller")?;
        let tsc_khz = vcpu.get_tsc_khz().unwrap_or(0);
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).asked("saving CPUID")?;
        let msrs = read_msrs(vcpu, msrs)?;
        // Last, since MSRs and the local APIC can generate events.
        let events = vcpu.get_vcpu_events().asked("saving pending events")?;
        let cpuid = cpuid.as_slice().to_vec();
        Ok(Self { cpuid, regs, sregs, debug, xsave, xcrs, msrs, lapic, events, mp, tsc_khz })
    }

    /// Loads the state into a vCPU that has never run.
    pub(crate) fn load(&self, vcpu: &VcpuHandle) -> Result<(), Error> {
        let cpuid =
            CpuId::from_entries(&self.cpuid).map_err(|error| damaged(format!("CPUID: {error}")))?;
        vcpu.set_cpuid2(&cpuid).asked("loading CPUID")?;
        // If the host's counter has another frequency and cannot be scaled, the guest's clock would
        // run at the wrong speed.
        if self.tsc_khz != 0 && vcpu.get_tsc_khz().is_ok_and(|here| here != self.tsc_khz) {
            vcpu.set_tsc_khz(self.tsc_khz)
                .supported("setting the time stamp counter to the guest's frequency")?;
        }
        vcpu.set_mp_state(self.mp).asked("loading a vCPU's run state")?;
        vcpu.set_regs(&self.regs).asked("loading registers")?;
        vcpu.set_sregs(&self.sregs).asked("loading system registers")?;
        // XCR0 determines which vector registers are valid.
        vcpu.set_xcrs(&self.xcrs).asked("loading extended control registers")?;
        vcpu.set_xsave(&self.xsave).supported("loading vector registers")?;
        vcpu.set_debug_regs(&self.debug).asked("loading debug registers")?;
        // After the system registers, which hold its base address; its timer starts counting now.
        vcpu.set_lapic(&self.lapic).asked("loading a local interrupt controller")?;
        let (last, first): (Vec<_>, Vec<_>) =
            self.msrs.iter().partition(|msr| msr.index == TSC_DEADLINE);
        write_msrs(vcpu, &first)?;
        write_msrs(vcpu, &last)?;
        vcpu.set_vcpu_events(&self.events).asked("loading pending events")
    }
}
