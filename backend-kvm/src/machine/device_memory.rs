//! Access to a machine's RAM for its devices.

use super::Machine;
use crate::error::Error;
use crate::memory::GuestRam;
use kaleidoscope_core::addr::Gpa;
use parking_lot::RwLock;
use std::sync::Arc;
/// A machine's RAM, for devices that access it themselves (DMA). The RAM lives as long as any of
/// these handles.
///
/// Accesses go through the kernel: when an on-demand clone's page can no longer be fetched, the
/// access fails with an error. What a vCPU's thread writes while it calls
/// [`Devices`](super::Devices) falls entirely before or after a freeze. A device with threads of
/// its own has to keep them from writing from [`Devices::save`](super::Devices::save) until the
/// vCPUs run again.
#[derive(Clone, Debug)]
pub struct DeviceMemory(Arc<RwLock<GuestRam>>);

impl DeviceMemory {
    /// Copies bytes of the guest's RAM, which the guest may be writing concurrently.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`](crate::ErrorKind::OutOfRange) when the range does not lie in one
    /// region of RAM; [`ErrorKind::Refused`](crate::ErrorKind::Refused) when its bytes cannot be
    /// read.
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        self.0.read().read(gpa, buf)
    }

    /// Overwrites bytes of the guest's RAM.
    ///
    /// # Errors
    /// As for [`DeviceMemory::read`].
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), Error> {
        self.0.read().write(gpa, bytes)
    }
}

impl Machine {
    /// A handle to the machine's RAM, for devices, which are created before the machine.
    #[must_use]
    pub fn device_memory(&self) -> DeviceMemory {
        DeviceMemory(Arc::clone(&self.ram))
    }
}
