//! The format in which the guest sends the ground truth to the host: records on a raw disk.
//!
//! Writing to a raw disk without the page cache disturbs the guest's memory least, and needs no
//! common file system. A record is one header block and the data, padded to whole blocks of 4096
//! bytes. The record named `end` is the last one.
//!
//! | header offset | size | field |
//! |---|---|---|
//! | 0 | 8 | the bytes `KALEIDO1` |
//! | 8 | 8 | length of the name, little endian |
//! | 16 | 8 | length of the data in bytes, little endian |
//! | 24 | | the name: ASCII letters, digits, `_`, `-`, `.` |

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "the guest's folder is renamed when it is whole")
)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{Error, Result};

/// Block size of the raw disk, in bytes.
pub(crate) const BLOCK: usize = 4096;
/// Size of the raw disk (a sparse file), in bytes.
pub(crate) const DISK_SIZE: u64 = 1 << 30;
/// Name of the last record.
pub(crate) const END: &str = "end";

const MAGIC: &[u8; 8] = b"KALEIDO1";
const LONGEST_NAME: usize = 200;
const NAME_AT: usize = 24;

/// Encodes a header block; `None` if the name is empty, too long, or has invalid characters.
pub(crate) fn header(name: &str, length: u64) -> Option<[u8; BLOCK]> {
    if !is_plain(name.as_bytes()) {
        return None;
    }
    let mut block = [0; BLOCK];
    let fields = MAGIC
        .iter()
        .copied()
        .chain(u64::try_from(name.len()).ok()?.to_le_bytes())
        .chain(length.to_le_bytes())
        .chain(name.bytes());
    for (byte, value) in block.iter_mut().zip(fields) {
        *byte = value;
    }
    Some(block)
}

/// Whether a name is usable as a file name, without separators and not hidden.
fn is_plain(name: &[u8]) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(byte))
        && name.first() != Some(&b'.')
}

/// Unpacks the records of `disk` into files in `folder`. Returns their number.
///
/// # Errors
/// If the dump is damaged or has no end, or a file cannot be written.
pub(crate) fn unpack(disk: &Path, folder: &Path) -> Result<usize> {
    let raw = File::open(disk).map_err(Error::io("open", disk))?;
    let size = raw.metadata().map_err(Error::io("examine", disk))?.len();
    let mut offset = 0;
    let mut count = 0usize;
    loop {
        let mut block = [0; BLOCK];
        raw.read_exact_at(&mut block, offset).map_err(Error::io("read", disk))?;
        let (name, length) = parse_header(&block).map_err(|what| Error::Truth { offset, what })?;
        if name == END {
            return Ok(count);
        }
        let bad = || Error::Truth { offset, what: format!("{name} runs past the disk's end") };
        let data = offset.checked_add(BLOCK as u64).ok_or_else(bad)?;
        let end = data.checked_add(length).filter(|end| *end <= size).ok_or_else(bad)?;
        extract(&raw, data, length, &folder.join(&name))?;
        offset = end.checked_next_multiple_of(BLOCK as u64).ok_or_else(bad)?;
        count = count.saturating_add(1);
    }
}

fn parse_header(block: &[u8; BLOCK]) -> std::result::Result<(String, u64), String> {
    let field = |at: usize| -> Option<u64> {
        let bytes = block.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    if !block.starts_with(MAGIC) {
        return Err("no record starts here".to_owned());
    }
    let name = field(8)
        .and_then(|length| usize::try_from(length).ok())
        .and_then(|length| NAME_AT.checked_add(length))
        .and_then(|end| block.get(NAME_AT..end))
        .filter(|name| is_plain(name))
        .ok_or("a record has an unusable name")?;
    let length = field(16).ok_or("a record has no length")?;
    Ok((String::from_utf8_lossy(name).into_owned(), length))
}

fn extract(raw: &File, from: u64, length: u64, path: &Path) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0u64;
    while done < length {
        let piece = usize::try_from(length.saturating_sub(done)).unwrap_or(usize::MAX);
        let piece = buffer.len().min(piece);
        let Some(data) = buffer.get_mut(..piece) else { break };
        raw.read_exact_at(data, from.saturating_add(done)).map_err(Error::io("read", path))?;
        file.write_all(data).map_err(Error::io("write", path))?;
        done = done.saturating_add(piece as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, data.len() as u64).unwrap().to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn unpacked(raw: &[u8]) -> (tempfile::TempDir, Result<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("raw");
        std::fs::write(&disk, raw).unwrap();
        let count = unpack(&disk, folder.path());
        (folder, count)
    }

    #[test]
    fn records_come_back() {
        let long = vec![9; 3 * BLOCK + 1];
        let parts =
            [record("proc_1_comm", b"init\n"), record("files", &long), record("empty", b"")];
        let raw = [parts.concat(), record(END, b"")].concat();
        let (folder, count) = unpacked(&raw);
        assert_eq!(count.unwrap(), 3);
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(read("proc_1_comm"), b"init\n");
        assert_eq!(read("files"), long);
        assert!(read("empty").is_empty());
    }

    #[test]
    fn damage_is_refused_with_its_place() {
        let whole = [record("a", b"1"), record(END, b"")].concat();
        let damaged = |at: usize, value: u8| {
            let mut raw = whole.clone();
            raw[at] = value;
            unpacked(&raw).1.unwrap_err().to_string()
        };
        assert!(damaged(0, b'X').contains("0x0"));
        assert!(damaged(2 * BLOCK, 0).contains("0x2000"));
        assert!(damaged(NAME_AT, b'/').contains("name"));
        assert!(damaged(8, 0).contains("name"));
        assert!(damaged(15, 0xff).contains("name"));
        assert!(damaged(22, 1).contains("past"));
        assert!(damaged(23, 0xff).contains("past"));
        assert!(unpacked(&whole[..2 * BLOCK]).1.is_err());
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        for name in ["", "a/b", "..", ".x", "a b", &"x".repeat(LONGEST_NAME + 1)] {
            assert!(header(name, 0).is_none(), "{name:?}");
        }
    }
}
