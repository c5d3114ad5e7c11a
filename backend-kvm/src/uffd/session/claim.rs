//! Userfaultfds that a session of this process serves.

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::fstat;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::AsFd;

/// Device and inode of each userfaultfd that is served.
static SERVED: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

/// The right to serve a userfaultfd. Two sessions on one would take messages from each other: a
/// session that does not learn that the guest gave a frame back would fill it with the parent's
/// bytes.
#[derive(Debug)]
pub(super) struct Claim(Option<(u64, u64)>);

impl Claim {
    /// Claims a userfaultfd. Copies of a descriptor are the same userfaultfd.
    ///
    /// # Errors
    /// [`Errno::BUSY`] when it is claimed already.
    pub(super) fn of(fd: impl AsFd) -> Result<Self, Errno> {
        let number = |fd: &dyn AsFd| fstat(fd.as_fd()).map(|status| (status.st_dev, status.st_ino));
        let this = number(&fd)?;
        // Linux before 5.12 has one inode for all of them, and for eventfds. They cannot be told
        // apart then.
        let other = eventfd(0, EventfdFlags::CLOEXEC)?;
        if number(&other)? == this {
            return Ok(Self(None));
        }
        if SERVED.lock().insert(this) { Ok(Self(Some(this))) } else { Err(Errno::BUSY) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(this) = &self.0 {
            SERVED.lock().remove(this);
        }
    }
}
