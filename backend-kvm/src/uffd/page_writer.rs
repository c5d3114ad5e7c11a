//! How pages come into memory that machines map.

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

/// Puts pages into a file of memory, each as a whole and once, whoever else does so, in this
/// process or another.
///
/// A page that is written to a file is there before all of it is: the kernel may stop in the middle
/// of copying, for want of the page that it copies from, and go on later, or never when its process
/// is killed. So pages come as they come to memory that is watched: the kernel copies one aside,
/// and then makes it the file's unless the file has one.
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
            // The process's memory is being rearranged: the engine knows for how long to try.
            Err((_, Errno::AGAIN)) => Ok(Installed::TryAgain),
            Err((_, error)) => Err(error).asked("putting a page on a cache"),
        }
    }
}
