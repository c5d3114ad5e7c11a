//! Finds the frames of a clone that were written to: their pages are private copies of QEMU's.
//!
//! A private mapping shows the file's page until the first write, and an anonymous page from then
//! on. `/proc/PID/pagemap` tells them apart (Linux `Documentation/admin-guide/mm/pagemap.rst`).

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::recorder::FRAME;
use crate::lab::error::{Error, Result};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page belongs to a file (or is shared).
const OF_FILE: u64 = 1 << 61;

/// A mapping of the RAM file in a process's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileMapping {
    /// Virtual page numbers; the end is exclusive.
    start: u64,
    end: u64,
    /// The file's page at `start`.
    page: u64,
}

/// Page indices of the file with inode number `inode` of which process `pid` has private copies.
/// The guest should be paused.
///
/// # Errors
/// If the process's page map cannot be read, or the process does not map the file.
pub(crate) fn pages(pid: u32, inode: u64) -> Result<HashSet<u64>> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let (maps, pagemap) = (folder.join("maps"), folder.join("pagemap"));
    let text = fs::read_to_string(&maps).map_err(Error::io("read", &maps))?;
    let file = File::open(&pagemap).map_err(Error::io("open", &pagemap))?;
    let mut written = HashSet::new();
    let mut parts = 0usize;
    for part in text.lines().filter_map(|line| parse(line, inode)) {
        parts = parts.saturating_add(1);
        let count = part.end.saturating_sub(part.start);
        let length = usize::try_from(count.saturating_mul(8)).unwrap_or(usize::MAX);
        let mut entries = vec![0; length];
        file.read_exact_at(&mut entries, part.start.saturating_mul(8))
            .map_err(Error::io("read", &pagemap))?;
        written.extend(
            (part.page..)
                .zip(entries.chunks_exact(8))
                .filter(|(_, raw)| is_copy(raw))
                .map(|(p, _)| p),
        );
    }
    if parts == 0 {
        return Err(Error::Trace(format!("{} does not map the RAM file", maps.display())));
    }
    Ok(written)
}

fn is_copy(raw: &[u8]) -> bool {
    let entry = u64::from_le_bytes(raw.try_into().unwrap_or_default());
    entry & SWAPPED != 0 || entry & PRESENT != 0 && entry & OF_FILE == 0
}

/// `START-END RIGHTS OFFSET DEVICE INODE PATH`: hexadecimal but for the inode; offset in bytes.
fn parse(line: &str, inode: u64) -> Option<FileMapping> {
    let mut words = line.split_whitespace();
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let (start, end) = words.next()?.split_once('-')?;
    let offset = hex(words.nth(1)?)?;
    if words.nth(1)?.parse() != Ok(inode) {
        return None;
    }
    Some(FileMapping { start: hex(start)? / FRAME, end: hex(end)? / FRAME, page: offset / FRAME })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f1000000000-7f1000004000 rw-p 00002000 00:33 77                  /ram";
        let part = FileMapping { start: 0x7_f100_0000, end: 0x7_f100_0004, page: 2 };
        assert_eq!(parse(line, 77), Some(part));
        assert_eq!(parse(line, 78), None);
        assert_eq!(parse("", 77), None);
    }

    #[test]
    fn entries_tell_copies() {
        let copy = |entry: u64| is_copy(&entry.to_le_bytes());
        assert!(copy(PRESENT | 5) && copy(SWAPPED));
        assert!(!copy(PRESENT | OF_FILE | 5) && !copy(0));
    }

    #[test]
    fn a_process_without_the_file_is_refused() {
        assert!(pages(std::process::id(), u64::MAX).is_err());
    }
}
