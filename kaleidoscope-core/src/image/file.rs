//! The bytes of a file that others may write to.
//!
//! Such a file is not mapped. A mapping of it changes under its readers, which safe code must not
//! let happen to a `&[u8]`, and reading what was cut off raises SIGBUS, which ends the whole
//! process. So bytes are copied with `pread`, where a cut file is an error for this image alone,
//! and after each copy the file's size and time stamps are looked at.
//!
//! Introspection reads millions of small fields. They come from blocks that are read once and kept,
//! so that most of these reads are a copy within this process; larger reads go to the file.

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

/// Bytes of a block.
const BLOCK: u64 = 16 << 10;

/// Reads of fewer bytes come from blocks.
const SMALL: usize = 4096;

/// Blocks may take this many bytes, and this part of the file.
const KEPT_BYTES: u64 = 64 << 20;
const KEPT_SHARE: u64 = 16;

/// An open file, and what of it is kept.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    /// The name that it was opened by, for people.
    path: PathBuf,
    opened: Stamp,
    /// The system's name of it, and a later stamp with the same contents.
    since: Mutex<(Option<PathBuf>, Stamp)>,
    /// Why the file is not what it was.
    changed: OnceLock<String>,
    blocks: LazyTable<OnceLock<Box<[u8]>>>,
    /// Bytes that blocks may still take.
    left: AtomicU64,
}

impl ImageFile {
    pub(super) fn new(file: File, path: PathBuf) -> io::Result<Self> {
        let opened = Stamp::settled(&file)?;
        let blocks = opened.bytes().div_ceil(BLOCK);
        Ok(Self {
            since: Mutex::new((name(&file), opened)),
            changed: OnceLock::new(),
            blocks: LazyTable::new(usize::try_from(blocks).unwrap_or(usize::MAX)),
            left: AtomicU64::new((opened.bytes() / KEPT_SHARE).saturating_add(KEPT_BYTES)),
            file,
            path,
            opened,
        })
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Length when it was opened, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.opened.bytes()
    }

    /// Fails once the file is not as it was when it was opened, from then on for good.
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
                "{} changed since it was opened: {why}. Take a copy or a snapshot that stays as it is",
                self.path.display()
            ))),
        }
    }

    /// How the contents changed, of a file whose stamp did.
    fn compare(&self, now: Stamp) -> Option<String> {
        let mut since = self.since.lock();
        let (last_name, last) = &mut *since;
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

    /// Fills `buf` with the bytes from `offset` on.
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
                // Past the end, or there is no room for another block.
                None => self.read_file(offset, part)?,
            }
            offset = offset.saturating_add(now as u64);
            rest = later;
        }
        Ok(())
    }

    /// The block around `offset`; `None` where it may not be kept.
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
        let Some(place) = self.blocks.get(number).filter(|_| len > 0 && taken.is_ok()) else {
            return Ok(None);
        };
        let mut block = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read_file(start, &mut block)?;
        // Another thread may have read it meanwhile: the same bytes.
        Ok(Some(place.get_or_init(|| block.into())))
    }

    /// Reads from the file itself.
    fn read_file(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let read = self.file.read_exact_at(buf, offset);
        // Afterwards: a write moves the time stamps before it changes a byte, so that no byte that
        // was read is of another time than the stamps. And this says best why a read came short.
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
