//! The bytes of an image: mapped if the file cannot change, copied from the file if it can, or held
//! in memory.
//!
//! A file is mapped only if no process can write to it or truncate it while it is mapped: a memfd
//! that is sealed against both, or a file that is immutable or under fs-verity. Slices of a mapping
//! can be borrowed without a copy. All other files are read; see [`file`](super::file).

#![expect(unsafe_code, reason = "maps image files that cannot change")]

use super::file::ImageFile;
use super::source::{Source, Unreadable};
use super::{Format, ImageError, MemoryImage, holes, open};
use crate::addr::FRAME_BYTES;
use memmap2::{Mmap, UncheckedAdvice};
use rustix::fs::{AtFlags, SealFlags, StatxAttributes, StatxFlags, fcntl_get_seals, statx};
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The source of an image's bytes.
#[derive(Debug)]
pub(super) enum ImageBytes {
    /// A private read-only mapping of a file that does not change, and the file's stored parts.
    Mapped(Mmap, Vec<Range<u64>>),
    /// A file that may change; changes are detected.
    File(Box<ImageFile>),
    /// Bytes given by the caller.
    Owned(Vec<u8>),
}

impl ImageBytes {
    /// Opens the bytes of a file or block device that was opened as `path`.
    pub(super) fn open(file: File, path: PathBuf) -> io::Result<Self> {
        let len = open::length(&file)?;
        if len == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        if cannot_change(&file) {
            // SAFETY: `cannot_change` returned true, so no process can write to the file or
            // truncate it through any descriptor or mapping. The mapping is private and read-only,
            // so this process does not write to it either. Every slice borrows from the `Mmap`,
            // which keeps the mapping alive.
            let map = unsafe { Mmap::map(&file)? };
            return Ok(Self::Mapped(map, holes::stored_parts(&file, len)));
        }
        ImageFile::new(file, path).map(|file| Self::File(Box::new(file)))
    }

    /// Drops the whole pages of a range from this process's memory. Later accesses map them again.
    pub(super) fn release(&self, range: Range<usize>) {
        let Self::Mapped(map, _) = self else { return };
        let start = range.start.next_multiple_of(FRAME_BYTES);
        let end = range.end.min(map.len());
        let Some(len) = end.checked_sub(start).filter(|&len| len >= FRAME_BYTES) else { return };
        let len = len - len % FRAME_BYTES;
        // SAFETY: the mapping is file-backed, private and read-only, so no page of it was ever
        // copied on a write; later accesses through existing slices read the pages from the file
        // again. The file does not change (see `open` and `open_unchanging`), so the bytes are the
        // same. The range is page-aligned and inside the mapping: `start` and `len` are multiples
        // of FRAME_BYTES and `end` is at most `map.len()`.
        let advised = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        // A failure only leaves the pages in memory.
        drop(advised);
    }

    /// The stored parts of the file; see [`holes`].
    pub(super) fn stored_parts(&self) -> Vec<Range<u64>> {
        match self {
            Self::File(file) => holes::stored_parts(file.file(), self.len()),
            Self::Mapped(_, stored) => stored.clone(),
            Self::Owned(_) => std::iter::once(0..self.len()).collect(),
        }
    }

    /// The bytes if they are in memory.
    #[inline]
    fn in_memory(&self) -> Option<&[u8]> {
        match self {
            Self::Mapped(map, _) => Some(map),
            Self::Owned(bytes) => Some(bytes),
            Self::File(_) => None,
        }
    }

    /// A part of the bytes, if they are in memory.
    #[inline]
    pub(super) fn slice(&self, range: Range<usize>) -> Option<&[u8]> {
        self.in_memory()?.get(range)
    }

    /// Copies the bytes at `offset`.
    #[inline]
    pub(super) fn read(&self, offset: usize, buf: &mut [u8]) -> io::Result<()> {
        let bytes = match self {
            Self::File(file) => return file.read(offset as u64, buf),
            Self::Mapped(map, _) => map,
            Self::Owned(bytes) => bytes.as_slice(),
        };
        let range = offset..offset.saturating_add(buf.len());
        let bytes = bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    /// Fails if the file has changed since it was opened.
    pub(super) fn check(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.check(),
            Self::Mapped(..) | Self::Owned(_) => Ok(()),
        }
    }
}

impl Source for ImageBytes {
    fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.bytes(),
            Self::Mapped(map, _) => map.len() as u64,
            Self::Owned(bytes) => bytes.len() as u64,
        }
    }

    fn bytes_at(&self, offset: u64, len: u64) -> Result<Option<Cow<'_, [u8]>>, Unreadable> {
        match self {
            Self::File(file) => file.bytes_at(offset, len),
            Self::Mapped(map, _) => map.bytes_at(offset, len),
            Self::Owned(bytes) => bytes.as_slice().bytes_at(offset, len),
        }
    }
}

impl MemoryImage {
    /// As [`open`](Self::open), but maps any file: nothing is copied, slices can be borrowed, and
    /// changes are not detected.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// # Safety
    /// While the image is open, no process may write to the file or truncate it, through a
    /// descriptor, a mapping, or the underlying device.
    pub unsafe fn open_unchanging(path: &Path, format: &Format) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Io { path: path.to_owned(), source };
        let file = open::open(path)?;
        let bytes = match open::length(&file).map_err(failed)? {
            0 => ImageBytes::Owned(Vec::new()),
            bytes => {
                let len = usize::try_from(bytes).unwrap_or(usize::MAX);
                // SAFETY: the caller guarantees that the file does not change (see `# Safety`). The
                // mapping is private and read-only. Every slice borrows from the `Mmap`, which
                // keeps the mapping alive. The length is passed because the metadata of a block
                // device has none.
                let map = unsafe { memmap2::MmapOptions::new().len(len).map(&file) };
                ImageBytes::Mapped(map.map_err(failed)?, holes::stored_parts(&file, bytes))
            }
        };
        // Further files that a layout names are opened as by `open`.
        Self::new(bytes, format)?.with_parts(format)
    }
}

/// Whether no process can write to the file or truncate it through any descriptor or mapping.
fn cannot_change(file: &File) -> bool {
    // The kernel seals a memfd against writing only while no writable mapping exists, and seals
    // cannot be removed.
    let seals = SealFlags::WRITE | SealFlags::SHRINK;
    if fcntl_get_seals(file).is_ok_and(|has| has.contains(seals)) {
        return true;
    }
    // An immutable file refuses writes through mappings and through descriptors that were opened
    // before. Only the administrator can make it mutable again; a file under fs-verity stays
    // immutable.
    let never = StatxAttributes::IMMUTABLE | StatxAttributes::VERITY;
    let known = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE);
    known.is_ok_and(|s| (s.stx_attributes & s.stx_attributes_mask).intersects(never))
}
