//! Reads image files that other processes may write to.
//!
//! Such a file is not mapped. A mapping changes when the file does, which must not happen to a
//! `&[u8]` in safe code, and an access past the end of a truncated file raises SIGBUS, which kills
//! the process. So bytes are copied with `pread`: a truncated file is an error of this image only,
//! and the file's size and time stamps are checked after each copy.
//!
//! Introspection reads millions of small fields. Small reads come from cached blocks, so most of
//! them are a copy within the process. Large reads go to the file.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::source::{Source, Unreadable};
use super::stamp::{Stamp, name};
use crate::memory::LazyTable;
use parking_lot::Mutex;
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Size of a block in bytes.
const BLOCK: u64 = 16 << 10;

/// Reads of fewer bytes than this use blocks.
const SMALL: usize = 4096;

/// Blocks may take [`CACHE_BYTES`] bytes plus 1/[`CACHE_SHARE`] of the file's length.
const CACHE_BYTES: u64 = 64 << 20;
const CACHE_SHARE: u64 = 16;

/// An open file and its cached blocks.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    /// The path by which it was opened, for messages.
    path: PathBuf,
    opened: Stamp,
    /// The file's name in `/proc/self/fd`, and the stamp of the last check that found the contents
    /// unchanged.
    latest: Mutex<(Option<PathBuf>, Stamp)>,
    /// Set once the file has changed: how.
    changed: OnceLock<String>,
    blocks: LazyTable<OnceLock<Box<[u8]>>>,
    /// Bytes that further blocks may take.
    left: AtomicU64,
}

impl ImageFile {
    pub(super) fn new(file: File, path: PathBuf) -> io::Result<Self> {
        let opened = Stamp::settled(&file)?;
        let blocks = opened.bytes().div_ceil(BLOCK);
        Ok(Self {
            latest: Mutex::new((name(&file), opened)),
            changed: OnceLock::new(),
            blocks: LazyTable::new(usize::try_from(blocks).unwrap_or(usize::MAX)),
            left: AtomicU64::new((opened.bytes() / CACHE_SHARE).saturating_add(CACHE_BYTES)),
            file,
            path,
            opened,
        })
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Length in bytes when the file was opened.
    pub(super) fn bytes(&self) -> u64 {
        self.opened.bytes()
    }

    /// Fails if the file has changed since it was opened, and from then on always.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.changed.get().is_none() {
            let now = Stamp::of(&self.file)?;
            if now == self.opened {
                return Ok(());
            }
            if let Some(why) = self.compare(now) {
                let _ = self.changed.set(why);
            }
        }
        match self.changed.get() {
            None => Ok(()),
            Some(why) => Err(io::Error::other(format!(
                "{} changed since it was opened: {why}. Take a copy or a snapshot that stays as it \
                 is",
                self.path.display()
            ))),
        }
    }

    /// How the contents changed, if the stamp `now` does not match.
    fn compare(&self, now: Stamp) -> Option<String> {
        let mut latest = self.latest.lock();
        let (last_name, last) = &mut *latest;
        if now == *last {
            return None;
        }
        let new_name = name(&self.file);
        let why = now.differs_from(last, new_name != *last_name);
        if why.is_none() {
            (*last_name, *last) = (new_name, now);
        }
        why
    }

    /// Fills `buf` with the bytes at `offset`.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if buf.len() >= SMALL {
            return self.read_file(offset, buf);
        }
        let (mut offset, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let into = usize::try_from(offset % BLOCK).unwrap_or(0);
            let left = BLOCK.saturating_sub(offset % BLOCK);
            let now = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let Some((part, later)) = rest.split_at_mut_checked(now) else { break };
            let range = into..into.saturating_add(now);
            match self.block(offset)?.and_then(|block| block.get(range)) {
                Some(bytes) => part.copy_from_slice(bytes),
                // The range is past the end, or no block may be added.
                None => self.read_file(offset, part)?,
            }
            offset = offset.saturating_add(now as u64);
            rest = later;
        }
        Ok(())
    }

    /// The block that contains `offset`; `None` if it may not be cached.
    #[inline]
    fn block(&self, offset: u64) -> io::Result<Option<&[u8]>> {
        let number = usize::try_from(offset / BLOCK).unwrap_or(usize::MAX);
        match self.blocks.made(number).and_then(OnceLock::get) {
            Some(block) => Ok(Some(block)),
            None => self.read_block(number),
        }
    }

    #[cold]
    fn read_block(&self, number: usize) -> io::Result<Option<&[u8]>> {
        let start = (number as u64).saturating_mul(BLOCK);
        let len = self.bytes().saturating_sub(start).min(BLOCK);
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(BLOCK));
        let Some(slot) = self.blocks.get(number).filter(|_| len > 0 && taken.is_ok()) else {
            return Ok(None);
        };
        let mut block = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read_file(start, &mut block)?;
        // Another thread may have read the same block meanwhile.
        Ok(Some(slot.get_or_init(|| block.into())))
    }

    /// Reads from the file itself.
    fn read_file(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let read = self.file.read_exact_at(buf, offset);
        // Checked after the read: a write updates the time stamps before it changes a byte, so
        // bytes that were read before an unchanged stamp are unchanged. The check also explains a
        // short read best.
        self.check()?;
        read
    }
}

impl Source for ImageFile {
    fn len(&self) -> u64 {
        self.bytes()
    }

    fn bytes_at(&self, offset: u64, len: u64) -> Result<Option<Cow<'_, [u8]>>, Unreadable> {
        let Some(bytes) = usize::try_from(len).ok().filter(|_| self.holds(offset, len)) else {
            return Ok(None);
        };
        let mut copy = vec![0; bytes];
        self.read_file(offset, &mut copy)
            .map_err(|error| Unreadable { offset, reason: error.to_string() })?;
        Ok(Some(Cow::Owned(copy)))
    }
}
