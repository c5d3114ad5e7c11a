//! Atomic writes of pages to a memory file that machines map.

use crate::error::{Asked, Error};
use crate::memory::MemoryFile;
use crate::sys::{Mapping, Sharing, Userfault};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::Installed;
use kaleidoscope_core::memory::Page;
use linux_raw_sys::general::UFFD_FEATURE_MISSING_SHMEM;
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Puts pages into a memory file, each as a whole and once, even if other threads or processes put
/// the same page.
///
/// write(2) is not atomic: the page is in the file before all of its bytes are, and the process may
/// be killed in between. Therefore the writer maps the file, watches the mapping with a
/// userfaultfd, and uses UFFDIO_COPY: the kernel copies a page aside, and then adds it to the file
/// unless the file has one there.
#[derive(Debug)]
pub(super) struct AtomicPageWriter(Userfault);

impl AtomicPageWriter {
    pub(super) fn new(file: &MemoryFile) -> Result<Self, Error> {
        let mapping = Mapping::of_file(file.as_fd(), file.len(), Sharing::Shared);
        let mapping = Arc::new(mapping.asked("mapping memory that clones share")?);
        let len = mapping.len();
        let watched = Userfault::new(mapping, UFFD_FEATURE_MISSING_SHMEM.into());
        let watched = watched.and_then(|userfault| {
            userfault.register(&(0..len))?;
            Ok(userfault)
        });
        watched.map(Self).permitted(
            "watching memory that clones share (userfaultfd: as root, with the right to open \
             /dev/userfaultfd, or with vm.unprivileged_userfaultfd = 1)",
        )
    }

    /// Puts a page into the file, unless it has one there.
    pub(super) fn put(&self, frame: FrameIndex, page: &Page) -> Result<Installed, Error> {
        match self.0.copy(frame.as_usize() * FRAME_BYTES, page) {
            Ok(()) => Ok(Installed::Installed),
            Err((_, Errno::EXIST)) => Ok(Installed::AlreadyPresent),
            // The process's address space is changing; the engine retries, with a timeout.
            Err((_, Errno::AGAIN)) => Ok(Installed::TryAgain),
            Err((_, error)) => Err(error).asked("putting a page on a cache"),
        }
    }
}
