//! The content store's file format.
//!
//! The file outlives its process, which may be killed at any moment. Before a slot gets another
//! page, its fingerprint is cleared; the new one is written after the page. A fingerprint in the
//! file therefore never stands for bytes other than those that it was computed from.

use crate::error::{Asked, Error};
use crate::memory::{MemoryFile, UnfitFile, runs};
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::fingerprint::{FINGERPRINT_BYTES, Fingerprint};
use kaleidoscope_core::memory::Page;
use rustix::fs::{FlockOperation, SeekFrom, fcntl_lock, seek};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// First bytes of every store.
const MAGIC: [u8; 8] = *b"KSTORE\r\n";

/// Format version. Readers reject all others.
const VERSION: u32 = 1;

/// Marks a slot without a known page. A page that really has this fingerprint is lost when its
/// process ends.
const NONE: Fingerprint = Fingerprint([0; FINGERPRINT_BYTES]);

/// Fingerprints read at once: one page of the table.
const PER_PAGE: u32 = 256;

/// Why a file cannot be reopened as a content store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum StoreFileError {
    /// It is not a suitable memory file.
    #[error(transparent)]
    Unfit(#[from] UnfitFile),
    /// A running process has the store open.
    #[error("a running process uses it")]
    InUse,
    /// It is something else, or its process ended while creating it.
    #[error("it does not start as a content store does")]
    Magic,
    /// A newer program wrote it.
    #[error("it has version {0}, and only version {VERSION} is supported")]
    Version(u32),
    /// It uses features that this version does not know.
    #[error("it has unknown flags: {0:#x}")]
    Flags(u32),
    /// It was truncated, or its first page is damaged.
    #[error("it has {size} bytes, and a store of {pages} pages has {expected}")]
    Size {
        /// Size of the file in bytes.
        size: u64,
        /// Capacity in pages, as the header says.
        pages: u32,
        /// Size in bytes of a store with that capacity.
        expected: u64,
    },
}

/// A header, a table with a fingerprint per slot, and the slots.
#[derive(Debug)]
pub(super) struct StoreFile {
    file: MemoryFile,
    pages: u32,
}

/// Bytes of the fingerprint table, rounded up to whole pages.
fn table_bytes(pages: u32) -> usize {
    pages.div_ceil(PER_PAGE) as usize * FRAME_BYTES
}

/// Offset of the first slot.
fn slots_offset(pages: u32) -> usize {
    FRAME_BYTES + table_bytes(pages)
}

/// Size in bytes of a store of `pages` pages.
fn file_bytes(pages: u32) -> usize {
    slots_offset(pages) + pages as usize * FRAME_BYTES
}

/// Offset of a slot's fingerprint.
fn key_offset(slot: u32) -> usize {
    FRAME_BYTES + slot as usize * FINGERPRINT_BYTES
}

impl StoreFile {
    /// Creates an empty store with a capacity of `pages` pages.
    pub(super) fn create(pages: u32) -> Result<Self, Error> {
        let file = MemoryFile::new(file_bytes(pages))?;
        lock(file.as_fd())?;
        let fields = [VERSION, 0, pages].map(u32::to_le_bytes);
        file.write(0, &[&MAGIC, fields.as_flattened()].concat())?;
        Ok(Self { file, pages })
    }

    /// Opens the store that a process has left.
    pub(super) fn open(fd: OwnedFd) -> Result<Self, Error> {
        let file = MemoryFile::of_others(fd)?.map_err(StoreFileError::from)?;
        let pages = header(&file)?;
        let (size, expected) = (file.len() as u64, file_bytes(pages) as u64);
        if size != expected {
            return Err(StoreFileError::Size { size, pages, expected }.into());
        }
        lock(file.as_fd())?;
        Ok(Self { file, pages })
    }

    /// Capacity in pages.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// Offset of a slot in the file.
    pub(super) fn offset(&self, slot: u32) -> usize {
        slots_offset(self.pages) + slot as usize * FRAME_BYTES
    }

    /// Copies the page of a slot.
    pub(super) fn read(&self, slot: u32, page: &mut Page) -> Result<(), Error> {
        self.file.read(self.offset(slot), page)
    }

    /// Copies bytes from `offset` bytes after the start of a slot; may extend over the following
    /// slots.
    pub(super) fn read_from(&self, slot: u32, offset: usize, buf: &mut [u8]) -> Result<(), Error> {
        self.file.read(self.offset(slot).saturating_add(offset), buf)
    }

    /// Writes a page to a slot.
    pub(super) fn put(&self, slot: u32, key: Fingerprint, page: &Page) -> Result<(), Error> {
        self.file.write(key_offset(slot), &NONE.0)?;
        self.file.write(self.offset(slot), page)?;
        self.file.write(key_offset(slot), &key.0)
    }

    /// Bytes of memory allocated for the file, as the kernel counts them.
    pub(super) fn taken(&self) -> Result<u64, Error> {
        self.file.taken()
    }

    /// The slots that have a fingerprint, sorted.
    pub(super) fn keys(&self) -> Result<Vec<(u32, Fingerprint)>, Error> {
        let mut keys = Vec::new();
        let mut table = [0; FRAME_BYTES];
        let pages = FRAME_BYTES..slots_offset(self.pages);
        for page in self.data(pages)?.into_iter().flatten() {
            self.file.read(FRAME_BYTES + page as usize * FRAME_BYTES, &mut table)?;
            let (found, _) = table.as_chunks();
            let slots = page * PER_PAGE..self.pages;
            let found = slots.zip(found).map(|(slot, key)| (slot, Fingerprint(*key)));
            keys.extend(found.filter(|(_, key)| *key != NONE));
        }
        Ok(keys)
    }

    /// The slots that were ever written to, with a fingerprint or without, as sorted runs.
    pub(super) fn written(&self) -> Result<Vec<Range<u32>>, Error> {
        self.data(slots_offset(self.pages)..file_bytes(self.pages))
    }

    /// Page numbers, relative to the start of `part`, that have memory allocated. Skips holes
    /// without reading them, since a file may be of any size.
    fn data(&self, part: Range<usize>) -> Result<Vec<Range<u32>>, Error> {
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
            // Guarantees progress: the kernel advances by a page at least.
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

/// Reads and checks the header; returns the capacity in pages.
fn header(file: &MemoryFile) -> Result<u32, Error> {
    let mut header = [0; MAGIC.len() + 12];
    // A file shorter than the header is not a store either.
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

/// Keeps other processes from opening the file while this one lives. This is a POSIX record lock,
/// owned by the process and not by the descriptor: a process that keeps a copy of the descriptor
/// does not keep the lock.
fn lock(fd: BorrowedFd<'_>) -> Result<(), Error> {
    match fcntl_lock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::AGAIN | Errno::ACCESS) => Err(StoreFileError::InUse.into()),
        Err(error) => Err(error).asked("locking a content store's file"),
    }
}
