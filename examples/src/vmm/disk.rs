//! What is on a disk: a file that never changes, and over it what a guest wrote.

use crate::vm::Outcome;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a sector, in which a disk's size is counted.
pub(super) const SECTOR: u64 = 512;

/// Bytes that are kept together where a guest writes.
const BLOCK: usize = 4096;

/// A disk. Its clone has what it has, and goes its own way: blocks are shared until either writes
/// to them.
///
/// What a guest writes is in memory, as large as what it wrote at most, and is gone with the last
/// of those that have it. Nobody else may change the file.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    file: Arc<File>,
    bytes: u64,
    /// What was written, by number of the block.
    written: Arc<BTreeMap<u64, Arc<[u8; BLOCK]>>>,
}

impl Disk {
    /// A disk with the whole sectors of a file, or of a block device.
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        let at = |error: io::Error| format!("{}: {error}", path.display());
        let mut file = File::open(path).map_err(at)?;
        // The length of a device is where its end is.
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

    /// Whether so many bytes from there on are on the disk.
    pub(super) fn has(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.bytes)
    }

    /// Copies bytes of the disk.
    pub(super) fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let (block, within) = place(offset);
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
            let (block, within) = place(offset);
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK - within));
            if !self.written.contains_key(&block) {
                let start = block * BLOCK as u64;
                // The last block of a disk may be a part of one.
                let len = usize::try_from(self.bytes - start).unwrap_or(BLOCK).min(BLOCK);
                let mut before = [0; BLOCK];
                self.file.read_exact_at(&mut before[..len], start)?;
                Arc::make_mut(&mut self.written).insert(block, Arc::new(before));
            }
            // The first write after a clone was made copies the table; a shared block is copied
            // when it is written to.
            if let Some(kept) = Arc::make_mut(&mut self.written).get_mut(&block) {
                Arc::make_mut(kept)[within..within + part.len()].copy_from_slice(part);
            }
            offset += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

/// The block that a byte is in, and where in it.
fn place(offset: u64) -> (u64, usize) {
    let block = BLOCK as u64;
    // Below the length of a block.
    (offset / block, usize::try_from(offset % block).unwrap_or(0))
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tests know their numbers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Not a whole number of blocks, and a few bytes that are no sector.
    const LEN: u64 = 5 * 4096 + 3 * SECTOR;

    fn file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..LEN + 100).map(|n| (n / 7 % 251) as u8).collect();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    proptest! {
        /// A disk and its clones, each against a copy of its bytes.
        #[test]
        fn disks_are_apart(
            steps in proptest::collection::vec((0..3usize, 0..LEN, 1..9000u64, any::<u8>(), any::<bool>()), 1..40),
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
