//! The guest's list of every resident page of every file, and the format of `/proc/PID/pagemap`
//! entries.
use std::path::Path;

use super::read;
use super::words::Cursor;
use crate::check::error::Error;
use kaleidoscope_core::guest_os::name::escape;

/// Longest accepted path, in bytes: Linux's `PATH_MAX`.
const LONGEST_PATH: usize = 4096;

/// A file with its resident pages.
#[derive(Debug)]
pub(crate) struct ResidentFile {
    /// Path by which the guest found it, escaped as in the coloring.
    pub(crate) path: String,
    /// `st_dev`.
    pub(crate) device: u64,
    /// Inode number.
    pub(crate) inode: u64,
    /// Resident pages: page index in the file, frame.
    pub(crate) pages: Vec<(u64, u64)>,
}

/// An entry of `/proc/PID/pagemap`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry(pub(super) u64);

impl Entry {
    const FRAME: u64 = (1 << 55) - 1;
    const SHARED: u64 = 1 << 61;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;

    /// The mapped frame, if there is one. Frame 0 counts as none: the kernel shows it to processes
    /// without `CAP_SYS_ADMIN`.
    pub(super) fn frame(self) -> Option<u64> {
        let present = self.0 & (Self::PRESENT | Self::SWAPPED) == Self::PRESENT;
        Some(self.0 & Self::FRAME).filter(|&frame| present && frame != 0)
    }

    /// Whether the page belongs to a file or to shared memory.
    pub(super) fn is_shared(self) -> bool {
        self.0 & Self::SHARED != 0
    }
}

/// Reads the list. A missing file is an empty list.
pub(super) fn load(path: &Path) -> Result<Vec<ResidentFile>, Error> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let bytes = read(path)?;
    let mut cursor = Cursor::new(path, &bytes);
    let mut files = Vec::new();
    while !cursor.is_empty() {
        files.push(load_record(&mut cursor)?);
    }
    Ok(files)
}

/// `<u64 path length, st_dev, inode, size, n> <path> <n pairs of u64: page index, pagemap entry>`
fn load_record(cursor: &mut Cursor<'_>) -> Result<ResidentFile, Error> {
    let [path_length, device, inode, _size, count] = cursor.words("header of a file")?;
    let length = usize::try_from(path_length).ok().filter(|&length| length <= LONGEST_PATH);
    let length = length.ok_or_else(|| cursor.error(format!("a path of {path_length} bytes")))?;
    let path = escape(cursor.take(length, "path")?);
    let entries = cursor.pairs(count, "resident pages")?;
    let pages =
        entries.into_iter().filter_map(|(index, entry)| Some((index, Entry(entry).frame()?)));
    Ok(ResidentFile { path, device, inode, pages: pages.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_bytes(bytes: &[u8]) -> Result<Vec<ResidentFile>, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        load(file.path())
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn pages_without_a_frame_are_left_out() {
        let mut bytes = words(&[2, 1, 7, 8192, 3]);
        bytes.extend(b"/a");
        bytes.extend(words(&[
            0,
            Entry::PRESENT | 0x10,
            1,
            Entry::SWAPPED | 0x11,
            2,
            Entry::PRESENT,
        ]));
        let files = load_bytes(&bytes).unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!((files[0].path.as_str(), files[0].device, files[0].inode), ("/a", 1, 7));
        assert_eq!(files[0].pages, [(0, 0x10)]);
    }

    #[test]
    fn lengths_that_are_lies_are_errors_with_an_offset() {
        let offset = |bytes: &[u8]| match load_bytes(bytes) {
            Err(Error::Truth { offset, .. }) => offset,
            other => panic!("{other:?}"),
        };
        assert_eq!(offset(&words(&[1, 2, 3])), 0, "header cut off");
        assert_eq!(offset(&words(&[u64::MAX, 1, 7, 0, 0])), 40, "endless path");
        assert_eq!(offset(&words(&[4000, 1, 7, 0, 0])), 40, "path cut off");
        assert_eq!(offset(&words(&[0, 1, 7, 0, u64::MAX])), 40, "number of pages overflows");
        assert_eq!(offset(&words(&[0, 1, 7, 0, 1 << 40])), 40, "more pages than bytes");
    }
}
