//! Arrays of little-endian 64-bit words, the format of `/proc/kpageflags` and similar files.
use std::path::Path;

use super::damaged;
use crate::check::error::Error;

/// Bytes in a word.
const WORD: usize = size_of::<u64>();

/// Reads a file of words.
pub(super) fn read(path: &Path) -> Result<Vec<u64>, Error> {
    of_bytes(path, &super::read(path)?)
}

fn of_bytes(path: &Path, bytes: &[u8]) -> Result<Vec<u64>, Error> {
    let (words, rest) = bytes.as_chunks::<WORD>();
    if !rest.is_empty() {
        let whole = bytes.len().saturating_sub(rest.len());
        return Err(damaged(
            path,
            whole,
            format!("{} bytes left over after the last 64-bit word", rest.len()),
        ));
    }
    Ok(words.iter().copied().map(u64::from_le_bytes).collect())
}

/// Reads a file of pairs of words.
pub(super) fn read_pairs(path: &Path) -> Result<Vec<(u64, u64)>, Error> {
    pairs_of_bytes(path, &super::read(path)?)
}

/// Splits bytes into pairs of words. `path` names the source in errors.
pub(super) fn pairs_of_bytes(path: &Path, bytes: &[u8]) -> Result<Vec<(u64, u64)>, Error> {
    let words = of_bytes(path, bytes)?;
    let (pairs, rest) = words.as_chunks::<2>();
    if !rest.is_empty() {
        let whole = pairs.len().saturating_mul(2).saturating_mul(WORD);
        return Err(damaged(path, whole, "half a pair of 64-bit words at the end".to_owned()));
    }
    Ok(pairs.iter().map(|&[first, second]| (first, second)).collect())
}

/// Reads words and bytes from a file's contents. Errors give the offset.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the beginning of `bytes`, the contents of `path`.
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, offset: 0 }
    }

    /// Whether everything was read.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads `N` words.
    pub(super) fn words<const N: usize>(&mut self, what: &str) -> Result<[u64; N], Error> {
        let (words, _) = self.take(N.saturating_mul(WORD), what)?.as_chunks::<WORD>();
        let mut out = [0; N];
        for (out, word) in out.iter_mut().zip(words) {
            *out = u64::from_le_bytes(*word);
        }
        Ok(out)
    }

    /// Reads `count` pairs of words. Checks `count` before allocating memory.
    pub(super) fn pairs(&mut self, count: u64, what: &str) -> Result<Vec<(u64, u64)>, Error> {
        let bytes =
            usize::try_from(count).ok().and_then(|count| count.checked_mul(WORD)?.checked_mul(2));
        let bytes = bytes.ok_or_else(|| self.error(format!("{count} {what} are too many")))?;
        let (words, _) = self.take(bytes, what)?.as_chunks::<WORD>();
        let (pairs, _) = words.as_chunks::<2>();
        Ok(pairs.iter().map(|&[a, b]| (u64::from_le_bytes(a), u64::from_le_bytes(b))).collect())
    }

    /// Reads `count` bytes.
    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], Error> {
        let Some((taken, rest)) = self.bytes.split_at_checked(count) else {
            return Err(
                self.error(format!("{what}: {count} bytes announced, {} left", self.bytes.len()))
            );
        };
        self.bytes = rest;
        self.offset = self.offset.saturating_add(count);
        Ok(taken)
    }

    /// An error at the current offset.
    pub(super) fn error(&self, problem: String) -> Error {
        damaged(self.path, self.offset, problem)
    }
}
