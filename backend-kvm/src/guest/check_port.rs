//! The device that records the guest's check failures.

use crate::machine::Devices;
use parking_lot::Mutex;

/// The port that the kernel writes a failure to.
pub(super) const PORT: u16 = 0xf0;

/// A failure of the guest: a process found a wrong byte, or the guest raised an exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckFailure {
    /// Number of the vCPU.
    pub vcpu: usize,
    /// The exception's vector. 6 (invalid opcode) means that a process found a mismatch, which its
    /// registers describe.
    pub vector: u8,
}

/// Records the guest's first failure. The vCPU then loops forever.
#[derive(Debug, Default)]
pub struct CheckPort(Mutex<Option<CheckFailure>>);

impl CheckPort {
    /// The guest's first failure, if there was one.
    #[must_use]
    pub fn failure(&self) -> Option<CheckFailure> {
        *self.0.lock()
    }
}

impl Devices for CheckPort {
    fn port_write(&self, vcpu: usize, port: u16, bytes: &[u8]) {
        if let (PORT, [vector]) = (port, bytes) {
            self.0.lock().get_or_insert(CheckFailure { vcpu, vector: *vector });
        }
    }
}
