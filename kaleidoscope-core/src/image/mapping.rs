//! The bytes of an image file: mapped, or held in memory.

#![expect(unsafe_code, reason = "maps the image file")]

use memmap2::Mmap;
use std::fs::File;
use std::io;

/// Where an image's bytes are.
#[derive(Debug)]
pub(super) enum ImageBytes {
    /// A private read-only mapping of the file.
    Mapped(Mmap),
    /// Bytes given by the caller.
    Owned(Vec<u8>),
}

impl ImageBytes {
    /// Maps the whole file. An empty file becomes no bytes.
    ///
    /// The file is not locked: `flock` is advisory, and the programs that truncate or rewrite memory files do not take
    /// it, so a lock would only look like protection.
    pub(super) fn map(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only, so nothing in this process writes to it, and it is kept alive by
        // the `Mmap` that every slice borrows from. Another process could change the file underneath: that the image is
        // frozen for as long as it is open is the documented contract of `MemoryImage::open`. The kernel rounds the
        // mapping up to whole pages; `Mmap` hands out only the file's length at this moment. A file that shrinks later
        // raises SIGBUS on access, which ends the process and is memory-safe.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self::Mapped(map))
    }

    /// All bytes of the file.
    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
