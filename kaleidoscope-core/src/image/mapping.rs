//! The bytes of an image: mapped where they cannot change, copied from the file where they can, or
//! held in memory.
//!
//! A file is mapped only if no process can write to it or cut it while it is mapped: a memfd that
//! is sealed against both, or a file that is immutable or under fs-verity. Then slices of it can be
//! handed out, and nothing is copied. Every other file is read; see [`file`](super::file).

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

/// Where an image's bytes are.
#[derive(Debug)]
pub(super) enum ImageBytes {
    /// A private read-only mapping of a file that does not change, and what the file stores.
    Mapped(Mmap, Vec<Range<u64>>),
    /// A file that may change, which is noticed.
    File(Box<ImageFile>),
    /// Bytes given by the caller.
    Owned(Vec<u8>),
}

impl ImageBytes {
    /// The bytes of a file or block device that was opened by the name `path`.
    pub(super) fn open(file: File, path: PathBuf) -> io::Result<Self> {
        let len = open::length(&file)?;
        if len == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        if cannot_change(&file) {
            // SAFETY: as `cannot_change` says, no process can write to the file or cut it, however
            // it has opened it. The mapping is private and read-only, so nothing in this process
            // writes to it either, and it is kept alive by the `Mmap` that every slice borrows
            // from.
            let map = unsafe { Mmap::map(&file)? };
            return Ok(Self::Mapped(map, holes::stored_parts(&file, len)));
        }
        ImageFile::new(file, path).map(|file| Self::File(Box::new(file)))
    }

    /// Takes the whole pages of a range out of this process's memory. They are mapped again when
    /// they are read.
    pub(super) fn release(&self, range: Range<usize>) {
        let Self::Mapped(map, _) = self else { return };
        let start = range.start.next_multiple_of(FRAME_BYTES);
        let end = range.end.min(map.len());
        let Some(len) = end.checked_sub(start).filter(|&len| len >= FRAME_BYTES) else { return };
        let len = len - len % FRAME_BYTES;
        // SAFETY: the mapping is of a file, private and read-only, so no page of it was ever copied
        // on a write: what a slice that somebody holds shows after this is read from the
        // file again, and a file that is mapped does not change (see `open` and
        // `open_unchanging`). The range is inside the mapping and starts and ends at a page.
        let advised = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        // What stays in memory costs memory and nothing else.
        drop(advised);
    }

    /// The parts of the file outside of which it stores nothing: see [`holes`].
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

    /// A part of the bytes, where they are in memory.
    #[inline]
    pub(super) fn slice(&self, range: Range<usize>) -> Option<&[u8]> {
        self.in_memory()?.get(range)
    }

    /// Copies the bytes from `offset` on.
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

    /// Fails once the file is not as it was when it was opened.
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
    /// As [`open`](Self::open), but maps the file whatever it is: nothing is copied, slices of it
    /// can be borrowed, and nothing looks whether it changes.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// # Safety
    /// While the image is open no process writes to the file or cuts it, through a descriptor, a
    /// mapping, or the device that it lies on.
    pub unsafe fn open_unchanging(path: &Path, format: &Format) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Io { path: path.to_owned(), source };
        let file = open::open(path)?;
        let bytes = match open::length(&file).map_err(failed)? {
            0 => ImageBytes::Owned(Vec::new()),
            bytes => {
                let len = usize::try_from(bytes).unwrap_or(usize::MAX);
                // SAFETY: the caller promises that the file does not change. The mapping is private
                // and read-only, and kept alive by the `Mmap` that every slice borrows from. The
                // length is given because a block device's file has none.
                let map = unsafe { memmap2::MmapOptions::new().len(len).map(&file) };
                ImageBytes::Mapped(map.map_err(failed)?, holes::stored_parts(&file, bytes))
            }
        };
        // Further files that a layout names are watched as usual.
        Self::new(bytes, format)?.with_parts(format)
    }
}

/// Whether no process can write to the file or cut it, in whatever way it has opened it.
fn cannot_change(file: &File) -> bool {
    // A memfd can be sealed against writing only while nothing maps it for writing, and seals stay.
    let seals = SealFlags::WRITE | SealFlags::SHRINK;
    if fcntl_get_seals(file).is_ok_and(|has| has.contains(seals)) {
        return true;
    }
    // An immutable file refuses writes through descriptors that were opened before, and writes
    // through mappings. Only the administrator can make it writable again, and a file under
    // fs-verity never is.
    let never = StatxAttributes::IMMUTABLE | StatxAttributes::VERITY;
    let known = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE);
    known.is_ok_and(|s| (s.stx_attributes & s.stx_attributes_mask).intersects(never))
}
