//! A disk's contents: a read-only file, and a copy-on-write overlay in memory.

use crate::vm::Outcome;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a sector, the unit of a disk's size.
pub(super) const SECTOR: u64 = 512;

/// Bytes of a block of the overlay.
const BLOCK: usize = 4096;

/// A disk. A clone of it has the same contents and is independent afterwards: the two share
/// blocks until either writes to them.
///
/// Written blocks are kept in memory until the last disk that has them is dropped. The file must
/// not change meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    file: Arc<File>,
    bytes: u64,
    /// Written blocks by number.
    written: Arc<BTreeMap<u64, Arc<[u8; BLOCK]>>>,
}

impl Disk {
    /// A disk with the contents of a file or block device. A partial sector at the end is left
    /// out.
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        let at = |error: io::Error| format!("{}: {error}", path.display());
        let mut file = File::open(path).map_err(at)?;
        // `stat` reports no length for a block device, but seeking to its end does.
        let bytes = io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(at)?;
        if bytes < SECTOR {
            return Err(format!("{}: a disk has at least {SECTOR} bytes", path.display()).into());
        }
        let bytes = bytes / SECTOR * SECTOR;
        Ok(Self { file: Arc::new(file), bytes, written: Arc::default() })
    }

    /// Number of sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.bytes / SECTOR
    }

    /// Whether the range of `len` bytes from `offset` is on the disk.
    pub(super) fn has(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.bytes)
    }

    /// Reads bytes of the disk.
    pub(super) fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let (block, within) = block_of(offset);
            let (part, rest) = buf.split_at_mut(buf.len().min(BLOCK - within));
            match self.written.get(&block) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + part.len()]),
                None => self.file.read_exact_at(part, offset)?,
            }
            offset += part.len() as u64;
            buf = rest;
        }
        Ok(())
    }

    /// Overwrites bytes of the disk.
    pub(super) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (block, within) = block_of(offset);
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK - within));
            if !self.written.contains_key(&block) {
                let start = block * BLOCK as u64;
                // The disk's last block may be partial.
                let len = usize::try_from(self.bytes - start).unwrap_or(BLOCK).min(BLOCK);
                let mut before = [0; BLOCK];
                self.file.read_exact_at(&mut before[..len], start)?;
                Arc::make_mut(&mut self.written).insert(block, Arc::new(before));
            }
            // The first write after a disk was cloned copies the map. The first write to a shared
            // block copies the block.
            if let Some(kept) = Arc::make_mut(&mut self.written).get_mut(&block) {
                Arc::make_mut(kept)[within..within + part.len()].copy_from_slice(part);
            }
            offset += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

/// The number of the block that contains a byte, and the byte's offset in it.
fn block_of(offset: u64) -> (u64, usize) {
    let block = BLOCK as u64;
    // Fits: less than `BLOCK`.
    (offset / block, usize::try_from(offset % block).unwrap_or(0))
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tests know their numbers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Not a multiple of the block size. The file has a partial sector after it.
    const LEN: u64 = 5 * 4096 + 3 * SECTOR;

    fn file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..LEN + 100).map(|n| (n / 7 % 251) as u8).collect();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    proptest! {
        /// Compares a disk and its clones, each with a flat copy of its bytes.
        #[test]
        fn disks_are_apart(
            steps in proptest::collection::vec(
                (0..3usize, 0..LEN, 1..9000u64, any::<u8>(), any::<bool>()),
                1..40,
            ),
        ) {
            let file = file();
            let before = std::fs::read(file.path()).unwrap();
            let first = Disk::open(file.path()).unwrap();
            prop_assert_eq!(first.sectors() * SECTOR, LEN);
            let mut disks = vec![(first, before[..LEN as usize].to_vec())];
            for (which, offset, len, value, clones) in steps {
                let which = which % disks.len();
                if clones && disks.len() < 3 {
                    disks.push(disks[which].clone());
                }
                let (disk, model) = &mut disks[which];
                let range = offset as usize..(offset + len).min(LEN) as usize;
                let new = vec![value; range.len()];
                disk.write(offset, &new).unwrap();
                model[range].copy_from_slice(&new);
            }
            for (disk, model) in &disks {
                let mut all = vec![0; model.len()];
                disk.read(0, &mut all).unwrap();
                prop_assert!(all == *model);
                let mut part = vec![0; 5000];
                disk.read(4000, &mut part).unwrap();
                prop_assert_eq!(&part[..], &model[4000..9000]);
            }
            prop_assert!(std::fs::read(file.path()).unwrap() == before, "the file is as it was");
        }
    }

    #[test]
    fn a_disk_ends_where_its_file_does() {
        let file = file();
        let disk = Disk::open(file.path()).unwrap();
        assert!(disk.has(LEN - 512, 512) && !disk.has(LEN - 512, 513) && !disk.has(u64::MAX, 2));
        std::fs::write(file.path(), [0; 100]).unwrap();
        assert!(Disk::open(file.path()).unwrap_err().to_string().contains("at least 512 bytes"));
        assert!(Disk::open(Path::new("/no/such/disk")).is_err());
    }
}
