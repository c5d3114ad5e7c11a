//! The KVM calls that take addresses of ours, or state whose size KVM does not know.

#![expect(unsafe_code, reason = "hands addresses of guest memory and raw state to KVM")]

use super::Mapping;
use kvm_bindings::{kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{VcpuFd, VmFd};
use std::ops::Range;
use std::sync::Arc;

/// Has the guest-physical range from `gpa` on show a part of a mapping. The VM's owner keeps the
/// mapping for as long as the slot or the VM exists, which is what `keep` reminds of.
pub(crate) fn install_slot(
    vm: &VmFd,
    slot: u32,
    gpa: u64,
    keep: &Arc<Mapping>,
    part: Range<usize>,
) -> Result<(), kvm_ioctls::Error> {
    if part.start > part.end || part.end > keep.len() {
        return Err(kvm_ioctls::Error::new(rustix::io::Errno::INVAL.raw_os_error()));
    }
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: part.len() as u64,
        userspace_addr: keep.address() + part.start as u64,
    };
    // SAFETY: the range lies in the mapping. Its owner, [`GuestRam`](crate::memory::GuestRam),
    // unmaps it with the VM, or has other memory of its own take its place; and nothing in this
    // process holds references into it, so the guest may write there.
    unsafe { vm.set_user_memory_region(region) }
}

/// Loads the vector registers. KVM checks what they hold.
pub(crate) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads 4096 bytes, the size of the structure: no feature that needs more is
    // enabled for this process, which would take an `arch_prctl` for each.
    unsafe { vcpu.set_xsave(xsave) }
}
