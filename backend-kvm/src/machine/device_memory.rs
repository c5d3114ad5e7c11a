//! A machine's RAM, as its devices reach it.

use super::Machine;
use crate::error::KvmError;
use crate::memory::GuestRam;
use kaleidoscope_core::addr::Gpa;
use parking_lot::RwLock;
use std::sync::Arc;

/// A machine's RAM, for devices that read and write it themselves. It lives on while there is one
/// of these.
///
/// Bytes go through the kernel: where a on_demand clone's page ceases to come, that is an error
/// here. What a vCPU's thread writes while it has a device do
/// something ([`Devices`](super::Devices)) is before or after a freeze as a whole. A device with
/// threads of its own has to keep them from writing from [`Devices::save`](super::Devices::save) on
/// until the vCPUs run again.
#[derive(Clone, Debug)]
pub struct DeviceMemory(Arc<RwLock<GuestRam>>);

impl DeviceMemory {
    /// Copies bytes of the guest's RAM, which the guest may be writing meanwhile.
    ///
    /// # Errors
    /// [`KvmError::NotRam`] when the range is not one run of RAM; [`KvmError::Refused`] when its
    /// bytes are not to be had.
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), KvmError> {
        self.0.read().read(gpa, buf)
    }

    /// Overwrites bytes of the guest's RAM.
    ///
    /// # Errors
    /// As for [`DeviceMemory::read`].
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), KvmError> {
        self.0.read().write(gpa, bytes)
    }
}

impl Machine {
    /// The machine's RAM for its devices, which are there before it is.
    #[must_use]
    pub fn device_memory(&self) -> DeviceMemory {
        DeviceMemory(Arc::clone(&self.ram))
    }
}
