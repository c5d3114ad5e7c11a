//! A file's words that several processes may change at any time.

#![expect(unsafe_code, reason = "maps a file that others may write")]

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Bytes that are kept in memory: the words that the kernel writes.
const LOCKED: usize = 4096;

/// A shared mapping of a sealed file. Its words are accessed atomically, so that other
/// processes may write them at any time.
#[derive(Debug)]
pub(crate) struct SharedWords {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: `start` is the address of a mapping that only `drop` unmaps, and all access goes through
// shared references to atomic words.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps a whole file, which has to be sealed against changes of its length (a memfd): a shorter
    /// file would end the process with SIGBUS.
    ///
    /// # Errors
    /// [`Errno::INVAL`] for a file that is not sealed, or not of whole words.
    pub(crate) fn map(file: impl AsFd) -> Result<Self, Errno> {
        let seals = SealFlags::SHRINK | SealFlags::GROW;
        if !fcntl_get_seals(&file)?.contains(seals) {
            return Err(Errno::INVAL);
        }
        let bytes = usize::try_from(fstat(&file)?.st_size).map_err(|_| Errno::INVAL)?;
        if bytes < LOCKED || !bytes.is_multiple_of(size_of::<AtomicU64>()) {
            return Err(Errno::INVAL);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start =
            unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(start.cast::<AtomicU64>()).ok_or(Errno::NOMEM)?;
        let words = Self { start, words: bytes / size_of::<AtomicU64>() };
        // SAFETY: the range lies in the mapping, and locking it changes no bytes.
        unsafe { mlock(words.start.as_ptr().cast(), LOCKED) }?;
        Ok(words)
    }

    /// All words.
    pub(crate) fn get(&self) -> &[AtomicU64] {
        // SAFETY: `map` received the range from mmap, page-aligned and of so many words, and it
        // stays mapped as long as `self` lives. The seals, which cannot be removed, keep the file
        // that long. Any bytes are an `AtomicU64`, and no reference that forbids writes exists.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let bytes = self.words * size_of::<AtomicU64>();
        // SAFETY: the range is this value's mapping, and references into it borrow the value.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
