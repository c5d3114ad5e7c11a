//! Who hears the guest complain.

use crate::machine::Devices;
use parking_lot::Mutex;

/// The port at which the kernel complains.
pub(super) const PORT: u16 = 0xf0;

/// A failure of the guest: it has found a byte that is not its own, or did what it must not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckFailure {
    /// Which vCPU.
    pub vcpu: usize,
    /// The exception's vector: 6 when a process found something wrong; its registers then say
    /// what.
    pub vector: u8,
}

/// Remembers the guest's first failure. It goes on in an endless loop.
#[derive(Debug, Default)]
pub struct CheckPort(Mutex<Option<CheckFailure>>);

impl CheckPort {
    /// The first failure, if there was one.
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
