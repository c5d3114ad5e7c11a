//! KVM calls that take addresses of this process, or state whose size KVM does not know.

#![expect(unsafe_code, reason = "hands addresses of guest memory and raw state to KVM")]

use super::Slot;
use kvm_bindings::{kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{Cap, Error, VcpuFd, VmFd};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// The memory slots of a VM.
type Slots = Arc<Mutex<Vec<Slot>>>;

/// A VM, with its memory: the addresses of its slots stay mapped until the VM and all of its vCPUs
/// are dropped. The guest runs only through a vCPU, so it never writes to memory that is mapped at
/// these addresses later.
#[derive(Debug)]
pub(crate) struct VmHandle {
    fd: VmFd,
    slots: Slots,
}

/// A vCPU, with the memory of its VM.
#[derive(Debug)]
pub(crate) struct VcpuHandle {
    fd: VcpuFd,
    _slots: Slots,
    /// Bytes that KVM_SET_XSAVE reads.
    xsave_bytes: usize,
}

impl VmHandle {
    /// A VM without memory.
    pub(crate) fn new(fd: VmFd) -> Self {
        Self { fd, slots: Slots::default() }
    }

    /// Makes a part of a mapping the guest's memory from the guest-physical address `gpa` on.
    pub(crate) fn install_slot(&self, slot: u32, gpa: u64, part: Slot) -> Result<(), Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: part.bytes(),
            userspace_addr: part.address(),
        };
        // Before the call, since KVM may use the memory as soon as it knows it.
        self.slots.lock().push(part);
        // SAFETY: the guest may write to the range from here on, until the VM and its vCPUs are
        // closed. `Slot::of` checked that the range lies in a `Mapping`, of whose bytes no
        // reference exists. `self.slots`, which every `VcpuHandle` shares, keeps it mapped for that
        // time.
        unsafe { self.fd.set_user_memory_region(region) }
    }

    /// Creates a vCPU.
    pub(crate) fn create_vcpu(&self, id: u64) -> Result<VcpuHandle, Error> {
        let fd = self.fd.create_vcpu(id)?;
        // The kernel fixes the process's permission for larger state when it creates a vCPU, so the
        // size no longer changes. Kernels without the capability return 0, and read 4096 bytes.
        let xsave_bytes = self.fd.check_extension_int(Cap::Xsave2);
        let xsave_bytes = usize::try_from(xsave_bytes).unwrap_or(usize::MAX);
        Ok(VcpuHandle { fd, _slots: Arc::clone(&self.slots), xsave_bytes })
    }
}

impl Deref for VmHandle {
    type Target = VmFd;

    fn deref(&self) -> &VmFd {
        &self.fd
    }
}

impl VcpuHandle {
    /// Loads the vector registers. KVM checks their contents.
    ///
    /// # Errors
    /// [`Errno::OPNOTSUPP`] when the process may use vector registers that need more room.
    pub(crate) fn set_xsave(&self, xsave: &kvm_xsave) -> Result<(), Error> {
        if self.xsave_bytes > size_of::<kvm_xsave>() {
            return Err(Error::new(Errno::OPNOTSUPP.raw_os_error()));
        }
        // SAFETY: KVM reads as many bytes as it reported for KVM_CAP_XSAVE2 (`create_vcpu`), which
        // are not more than the structure has (checked above).
        unsafe { self.fd.set_xsave(xsave) }
    }
}

impl Deref for VcpuHandle {
    type Target = VcpuFd;

    fn deref(&self) -> &VcpuFd {
        &self.fd
    }
}

impl DerefMut for VcpuHandle {
    fn deref_mut(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }
}
