//! The file of a content store, byte by byte.
//!
//! It outlives its process, which may be killed at any moment. So of a place that gets another page
//! the fingerprint is cleared first and written last: at no moment does a fingerprint name other
//! bytes than those that it was computed for.

use crate::error::{Asked, KvmError};
use crate::memory::{MemoryFile, UnfitFile, runs};
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::fingerprint::{FINGERPRINT_BYTES, Fingerprint};
use kaleidoscope_core::memory::Page;
use rustix::fs::{FlockOperation, SeekFrom, fcntl_lock, seek};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use thiserror::Error;

/// What every store begins with.
const MAGIC: [u8; 8] = *b"KSTORE\r\n";

/// A reader refuses any other.
const VERSION: u32 = 1;

/// A place without a page that is known. A page whose fingerprint is this one is lost with its
/// process.
const NONE: Fingerprint = Fingerprint([0; FINGERPRINT_BYTES]);

/// Fingerprints that are read at once: a page of the table.
const PER_PAGE: u32 = 256;

/// Why a file is not a content store that can be opened again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum StoreFileError {
    /// It is not such a file as a store has.
    #[error(transparent)]
    Unfit(#[from] UnfitFile),
    /// Its former process has not ended.
    #[error("a process that lives uses it")]
    InUse,
    /// It is something else, or its process ended while it was made.
    #[error("it does not begin as a store does")]
    Magic,
    /// It was written by a newer program.
    #[error("it is of version {0}, and only version {VERSION} can be read")]
    Version(u32),
    /// It has something that cannot be read without knowing of it.
    #[error("it has flags that nobody knows: {0:#x}")]
    Flags(u32),
    /// It was cut, or its first page is damaged.
    #[error("it has {size} bytes, and a store of {pages} pages has {expected}")]
    Size {
        /// Bytes that it has.
        size: u64,
        /// Pages that it says it has room for.
        pages: u32,
        /// Bytes that a store of so many pages has.
        expected: u64,
    },
}

/// A header, a fingerprint for each place, and the places.
#[derive(Debug)]
pub(super) struct StoreFile {
    file: MemoryFile,
    pages: u32,
}

/// Bytes of the table of so many pages, whole pages.
fn table_bytes(pages: u32) -> usize {
    pages.div_ceil(PER_PAGE) as usize * FRAME_BYTES
}

/// Where the places begin.
fn places(pages: u32) -> usize {
    FRAME_BYTES + table_bytes(pages)
}

/// Bytes of a store of so many pages.
fn all_bytes(pages: u32) -> usize {
    places(pages) + pages as usize * FRAME_BYTES
}

/// Where a place's fingerprint is.
fn key_at(slot: u32) -> usize {
    FRAME_BYTES + slot as usize * FINGERPRINT_BYTES
}

impl StoreFile {
    /// A store without pages, of room for so many.
    pub(super) fn create(pages: u32) -> Result<Self, KvmError> {
        let file = MemoryFile::new(all_bytes(pages))?;
        claim(file.as_fd())?;
        let fields = [VERSION, 0, pages].map(u32::to_le_bytes);
        file.write(0, &[&MAGIC, fields.as_flattened()].concat())?;
        Ok(Self { file, pages })
    }

    /// A store that a process that has ended has left.
    pub(super) fn open(fd: OwnedFd) -> Result<Self, KvmError> {
        let file = MemoryFile::of_others(fd)?.map_err(StoreFileError::from)?;
        let pages = header(&file)?;
        let (size, expected) = (file.len() as u64, all_bytes(pages) as u64);
        if size != expected {
            return Err(StoreFileError::Size { size, pages, expected }.into());
        }
        claim(file.as_fd())?;
        Ok(Self { file, pages })
    }

    /// Pages that it has room for.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// Where a place is.
    pub(super) fn offset(&self, slot: u32) -> usize {
        places(self.pages) + slot as usize * FRAME_BYTES
    }

    /// Copies out what is in a place.
    pub(super) fn read(&self, slot: u32, page: &mut Page) -> Result<(), KvmError> {
        self.file.read(self.offset(slot), page)
    }

    /// Copies out bytes of a place and those that follow it, from an offset in it on.
    pub(super) fn read_from(
        &self,
        slot: u32,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<(), KvmError> {
        self.file.read(self.offset(slot).saturating_add(offset), buf)
    }

    /// Puts a page in a place.
    pub(super) fn put(&self, slot: u32, key: Fingerprint, page: &Page) -> Result<(), KvmError> {
        self.file.write(key_at(slot), &NONE.0)?;
        self.file.write(self.offset(slot), page)?;
        self.file.write(key_at(slot), &key.0)
    }

    /// Bytes of memory that it takes, as the kernel counts them.
    pub(super) fn taken(&self) -> Result<u64, KvmError> {
        self.file.taken()
    }

    /// The places with a fingerprint, in order.
    pub(super) fn keys(&self) -> Result<Vec<(u32, Fingerprint)>, KvmError> {
        let mut keys = Vec::new();
        let mut table = [0; FRAME_BYTES];
        let pages = FRAME_BYTES..places(self.pages);
        for page in self.data(pages)?.into_iter().flatten() {
            self.file.read(FRAME_BYTES + page as usize * FRAME_BYTES, &mut table)?;
            let (found, _) = table.as_chunks();
            let slots = page * PER_PAGE..self.pages;
            let found = slots.zip(found).map(|(slot, key)| (slot, Fingerprint(*key)));
            keys.extend(found.filter(|(_, key)| *key != NONE));
        }
        Ok(keys)
    }

    /// The places that were ever written to, whether they have a fingerprint or not, as runs.
    pub(super) fn written(&self) -> Result<Vec<Range<u32>>, KvmError> {
        self.data(places(self.pages)..all_bytes(self.pages))
    }

    /// Pages of a part of the file that have memory, counted from its start. Finds them without
    /// looking at the others: a file may be of any size.
    fn data(&self, part: Range<usize>) -> Result<Vec<Range<u32>>, KvmError> {
        let mut found = Vec::new();
        let (start, end) = (part.start as u64, part.end as u64);
        let page = |at: u64| {
            u32::try_from(at.saturating_sub(start) / FRAME_BYTES as u64).unwrap_or(u32::MAX)
        };
        let mut at = start;
        while at < end {
            let from = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(from) if from < end => from,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(error) => return Err(error).asked("looking for what a content store holds"),
            };
            let hole = seek(&self.file, SeekFrom::Hole(from));
            let to = hole.asked("looking for what a content store holds")?.min(end);
            found.push(page(from)..page(to));
            // The kernel moves on by a page at least.
            at = to.max(from.saturating_add(1));
        }
        Ok(runs::normal(found))
    }
}

impl AsFd for StoreFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Room that a header says.
fn header(file: &MemoryFile) -> Result<u32, KvmError> {
    let mut header = [0; MAGIC.len() + 12];
    // A file without room for it is none either.
    file.read(0, &mut header).map_err(|_| StoreFileError::Magic)?;
    let (magic, fields) = header.split_at(MAGIC.len());
    let (fields, _) = fields.as_chunks();
    let [version, flags, pages] = fields else { return Err(StoreFileError::Magic.into()) };
    let [version, flags, pages] = [version, flags, pages].map(|field| u32::from_le_bytes(*field));
    if magic != MAGIC {
        return Err(StoreFileError::Magic.into());
    }
    if version != VERSION {
        return Err(StoreFileError::Version(version).into());
    }
    if flags != 0 {
        return Err(StoreFileError::Flags(flags).into());
    }
    Ok(pages)
}

/// Keeps other processes from opening the file while this one lives. The lock is the process's, not
/// the descriptor's: whoever keeps the file for later has a copy of the descriptor, and is not to
/// keep the lock.
fn claim(fd: BorrowedFd<'_>) -> Result<(), KvmError> {
    match fcntl_lock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::AGAIN | Errno::ACCESS) => Err(StoreFileError::InUse.into()),
        Err(error) => Err(error).asked("locking a content store's file"),
    }
}
