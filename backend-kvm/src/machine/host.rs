//! The host's KVM.

use crate::error::{Asked, Error, ErrorKind};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use std::sync::Arc;

/// The host's KVM, and the CPUID entries and MSR list that its guests share.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    cpuid: CpuId,
    msrs: Vec<u32>,
}

/// KVM capabilities that saving and loading a machine needs.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "user memory"),
    (Cap::Irqchip, "interrupt controllers"),
    (Cap::ImmediateExit, "immediate exits"),
    (Cap::Xsave, "saving vector registers"),
    (Cap::VcpuEvents, "saving pending events"),
    (Cap::MpState, "saving a vCPU's run state"),
];

impl Host {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when it cannot be opened, [`ErrorKind::Unsupported`] when a
    /// needed capability is missing.
    pub fn open() -> Result<Arc<Self>, Error> {
        let kvm =
            Kvm::new().permitted("opening /dev/kvm (does it exist, and may this user open it?)")?;
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            let what = format!("this host's KVM lacks {name}");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).asked("reading CPUID")?;
        let msrs = kvm.get_msr_index_list().asked("reading the list of MSRs")?;
        Ok(Arc::new(Self { cpuid, msrs: msrs.as_slice().to_vec(), kvm }))
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// CPUID entries of the vCPU with this number: everything that KVM supports.
    pub(crate) fn cpuid(&self, vcpu: u32) -> CpuId {
        let mut cpuid = self.cpuid.clone();
        for entry in cpuid.as_mut_slice() {
            match entry.function {
                // Local APIC id (Intel SDM vol. 2, CPUID), and the hypervisor bit.
                0x1 => {
                    entry.ebx = entry.ebx & 0x00ff_ffff | vcpu << 24;
                    entry.ecx |= 1 << 31;
                }
                // x2APIC id in the topology leaves.
                0xb | 0x1f => entry.edx = vcpu,
                _ => {}
            }
        }
        cpuid
    }

    /// The MSRs that make up a vCPU's state.
    pub(crate) fn msrs(&self) -> &[u32] {
        &self.msrs
    }
}
