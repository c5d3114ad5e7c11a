//! File bytes by offset, for the format parsers: from a slice, or from a file that is read.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::borrow::Cow;
use thiserror::Error;

/// The system could not read a part of the file.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("file offset {offset:#x} cannot be read: {reason}")]
pub(super) struct Unreadable {
    /// File offset in bytes.
    pub(super) offset: u64,
    /// The system's reason.
    pub(super) reason: String,
}

/// A source of bytes at offsets.
pub(super) trait Source {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// `len` bytes at `offset`; `None` if the range reaches past the end. Callers must bound `len`,
    /// because the bytes may be copied.
    fn bytes_at(&self, offset: u64, len: u64) -> Result<Option<Cow<'_, [u8]>>, Unreadable>;

    /// The first `len` bytes, or all if there are fewer.
    fn start(&self, len: u64) -> Result<Cow<'_, [u8]>, Unreadable> {
        Ok(self.bytes_at(0, len.min(self.len()))?.unwrap_or_default())
    }

    /// Whether the `len` bytes at `offset` lie inside the file.
    fn holds(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len())
    }
}

impl Source for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn bytes_at(&self, offset: u64, len: u64) -> Result<Option<Cow<'_, [u8]>>, Unreadable> {
        let range = offset
            .checked_add(len)
            .and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
        Ok(range.and_then(|range| self.get(range)).map(Cow::Borrowed))
    }
}
