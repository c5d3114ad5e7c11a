//! Descriptors of VMs that are no longer served and may still run.
//!
//! The kernel fills missing pages with zeros once the last copy of a userfaultfd is closed. So the
//! descriptors of such a VM stay open until the VM has ended, and its vCPUs wait instead of reading
//! zeros in place of the parent's bytes.

use crate::sys::Descriptor;
use crate::uffd::memory::End;
use parking_lot::Mutex;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What is kept open for one VM.
#[derive(Debug)]
pub(in crate::uffd) struct Orphan {
    pub(in crate::uffd) descriptors: Vec<Arc<Descriptor>>,
    /// Userfaultfds of processes that the VM's process forked.
    #[expect(dead_code, reason = "kept open")]
    pub(in crate::uffd) forked: Vec<OwnedFd>,
    /// What tells that the VM has ended; without any, the descriptors stay open until this process
    /// exits.
    pub(in crate::uffd) ends: Arc<Vec<End>>,
}

static ORPHANS: Mutex<Vec<Orphan>> = Mutex::new(Vec::new());

impl Orphan {
    /// Keeps the descriptors open until the VM has ended.
    pub(super) fn keep(self) {
        if !self.descriptors.is_empty() {
            ORPHANS.lock().push(self);
        }
        sweep();
    }
}

/// Closes the descriptors of VMs that have ended. Called whenever a session starts or is dropped.
pub(super) fn sweep() {
    let ended: Vec<Orphan> =
        ORPHANS.lock().extract_if(.., |orphan| End::has_come(&orphan.ends)).collect();
    // Closed without the lock.
    drop(ended);
}
