//! Sparse copies of large files.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "the guest's folder is renamed when it is whole")
)]

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::error::{Error, Result};

/// Hole granularity: one page.
const BLOCK: usize = 4096;
const CHUNK: usize = 256 * BLOCK;

/// Copies `from` to `to`, leaving holes for zero pages. Returns how many pages are not zero.
///
/// # Errors
/// If either file cannot be read or written.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<u64> {
    let source = File::open(from).map_err(Error::io("open", from))?;
    let target = File::create(to).map_err(Error::io("create", to))?;
    let length = source.metadata().map_err(Error::io("examine", from))?.len();
    target.set_len(length).map_err(Error::io("size", to))?;
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    let mut pages = 0;
    while let Some(start) = next_data(&source, offset).map_err(Error::io("read", from))? {
        // File systems report data in their own block size, so round down to a whole page.
        offset = start - start % BLOCK as u64;
        let filled = read_full(&source, &mut buffer, offset).map_err(Error::io("read", from))?;
        let data = buffer.get(..filled).unwrap_or_default();
        pages += write_nonzero(&target, data, offset).map_err(Error::io("write", to))?;
        offset += filled as u64;
    }
    Ok(pages)
}

/// The first offset at or after `offset` that is not in a hole; `None` at the end of the file.
fn next_data(file: &File, offset: u64) -> std::io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes the blocks of `data` that are not zero, adjacent ones at once. Returns their number.
fn write_nonzero(target: &File, data: &[u8], offset: u64) -> std::io::Result<u64> {
    let mut pages = 0;
    let mut run: Option<(usize, usize)> = None;
    for (index, block) in data.chunks(BLOCK).enumerate() {
        let start = index * BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            flush(target, data, offset, run.take())?;
            continue;
        }
        pages += 1;
        let (first, length) = run.unwrap_or((start, 0));
        run = Some((first, length + block.len()));
    }
    flush(target, data, offset, run)?;
    Ok(pages)
}

fn flush(
    target: &File,
    data: &[u8],
    offset: u64,
    run: Option<(usize, usize)>,
) -> std::io::Result<()> {
    let Some((start, length)) = run else { return Ok(()) };
    let bytes = data.get(start..start + length).unwrap_or_default();
    target.write_all_at(bytes, offset + start as u64)
}

fn read_full(source: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        // Reading the holes would take minutes.
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"end", (1 << 40) - 3).unwrap();
        file.write_all_at(b"middle", (1 << 30) + 5000).unwrap();
        assert_eq!(copy(&from, &to).unwrap(), 2);
        let mut middle = [0; 6];
        let copied = File::open(&to).unwrap();
        copied.read_exact_at(&mut middle, (1 << 30) + 5000).unwrap();
        assert_eq!(&middle, b"middle");
        assert_eq!(copied.metadata().unwrap().len(), 1 << 40);
    }

    #[test]
    fn copies_are_equal_and_sparse() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let mut contents = vec![0u8; 3 * CHUNK + 1000];
        for at in [0, BLOCK - 1, BLOCK, CHUNK + 5, 2 * CHUNK - 1, 3 * CHUNK + 999] {
            contents[at] = 7;
        }
        std::fs::write(&from, &contents).unwrap();
        assert_eq!(copy(&from, &to).unwrap(), 5);
        assert!(std::fs::read(&to).unwrap() == contents);
        let allocated = to.metadata().unwrap().blocks() * 512;
        assert!(allocated < contents.len() as u64 / 2, "{allocated} bytes allocated");
    }
}
