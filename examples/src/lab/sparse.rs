//! Copies of large files that take no room for zeros.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{Error, Result};

/// Hole granularity: one page.
const BLOCK: usize = 4096;
const CHUNK: usize = 256 * BLOCK;

/// Copies `from` to `to`, leaving holes for pages of zeros; returns how many pages are not zero.
///
/// # Errors
/// If either file cannot be read or written.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<u64> {
    let mut source = File::open(from).map_err(Error::io("open", from))?;
    let target = File::create(to).map_err(Error::io("create", to))?;
    let length = source.metadata().map_err(Error::io("examine", from))?.len();
    target.set_len(length).map_err(Error::io("size", to))?;
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    let mut pages = 0;
    loop {
        let filled = read_full(&mut source, &mut buffer).map_err(Error::io("read", from))?;
        if filled == 0 {
            return Ok(pages);
        }
        // Neighboring blocks with contents are written together.
        let mut run: Option<(u64, usize, usize)> = None;
        let data = buffer.get(..filled).unwrap_or_default();
        for (index, block) in data.chunks(BLOCK).enumerate() {
            let start = index * BLOCK;
            if block.iter().all(|byte| *byte == 0) {
                flush(&target, data, run.take()).map_err(Error::io("write", to))?;
                continue;
            }
            pages += 1;
            run = Some(match run {
                Some((at, first, length)) => (at, first, length + block.len()),
                None => (offset + start as u64, start, block.len()),
            });
        }
        flush(&target, data, run).map_err(Error::io("write", to))?;
        offset += filled as u64;
    }
}

fn flush(target: &File, data: &[u8], run: Option<(u64, usize, usize)>) -> std::io::Result<()> {
    let Some((offset, start, length)) = run else { return Ok(()) };
    target.write_all_at(data.get(start..start + length).unwrap_or_default(), offset)
}

fn read_full(source: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
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
