//! Who hears the guest complain.

use crate::machine::Devices;
use parking_lot::Mutex;

/// The port at which the kernel complains.
pub(super) const PORT: u16 = 0xf0;

/// A complaint of the guest: it has found a byte that is not its own, or did what it must not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Complaint {
    /// Which vCPU.
    pub vcpu: usize,
    /// The exception's vector: 6 when a process found something wrong; its registers then say what.
    pub vector: u8,
}

/// Remembers the guest's first complaint. It goes on in an endless loop.
#[derive(Debug, Default)]
pub struct Witness(Mutex<Option<Complaint>>);

impl Witness {
    /// The first complaint, if there was one.
    #[must_use]
    pub fn complaint(&self) -> Option<Complaint> {
        *self.0.lock()
    }
}

impl Devices for Witness {
    fn port_write(&self, vcpu: usize, port: u16, bytes: &[u8]) {
        if let (PORT, [vector]) = (port, bytes) {
            self.0.lock().get_or_insert(Complaint { vcpu, vector: *vector });
        }
    }
}
