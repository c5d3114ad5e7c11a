//! Finds the resident pages of files, and their frames.
//!
//! Each file is mapped, and mincore(2) reports which of its pages are cached. Only those are
//! touched, and `/proc/self/pagemap` gives their frames. No other page is read into memory, because
//! `MADV_RANDOM` turns readahead off.

use crate::stdio::say;
use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::os::{Advice, Mapping, PAGE};
use crate::lab::error::{Error, Result};

/// File systems whose files live in the page cache of real memory.
const REAL: &[&str] = &["ext4", "tmpfs", "squashfs", "xfs", "overlay"];

/// Bytes of a file that are mapped at a time.
const WINDOW: u64 = 256 << 20;

/// "The page is in RAM" in a pagemap entry (kernel `admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;

/// Collects records of resident files in the format of the ground truth's `files`.
#[derive(Debug)]
pub(crate) struct Residency {
    pagemap: File,
    seen: BTreeSet<(u64, u64)>,
    records: Vec<u8>,
}

/// A mounted file system.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
    source: String,
}

impl Residency {
    /// Opens the agent's own page map.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn new() -> Result<Self> {
        let path = Path::new("/proc/self/pagemap");
        let pagemap = File::open(path).map_err(Error::io("open", path))?;
        Ok(Self { pagemap, seen: BTreeSet::new(), records: Vec::new() })
    }

    /// The records of every file with a name on a mounted file system, and of every file without a
    /// name that is open or mapped. Each inode is listed once under each of its names.
    ///
    /// An overlay's files are listed under the overlay and, when that is mounted too, under the
    /// file system below: the frames are the same.
    ///
    /// # Errors
    /// If the mounts cannot be read.
    pub(crate) fn files(mut self) -> Result<Vec<u8>> {
        let mut devices = BTreeSet::new();
        for mount in mounts()?.iter().filter(|mount| REAL.contains(&mount.kind.as_str())) {
            let Ok(root) = fs::symlink_metadata(&mount.point) else { continue };
            if devices.insert(root.dev()) {
                // Each file system is walked once, so a file that is found again has another
                // name. The kernel may know the file by either name.
                for (path, meta) in walk(&mount.point, root.dev()) {
                    self.seen.insert((meta.dev(), meta.ino()));
                    self.add_name(&path, path.as_os_str().as_bytes(), &meta);
                }
            }
        }
        for link in process_links() {
            let (Ok(name), Ok(meta)) = (fs::read_link(&link), fs::metadata(&link)) else {
                continue;
            };
            // The huge page pool is not page cache, and mapping it reserves pages.
            if meta.is_file() && !name.starts_with("/anon_hugepage") {
                self.add(&link, name.as_os_str().as_bytes(), &meta);
            }
        }
        Ok(self.records)
    }

    /// The records of the block devices of mounted file systems, whose page cache has the file
    /// systems' metadata. Device and inode are those of the device node.
    ///
    /// # Errors
    /// If the mounts cannot be read.
    pub(crate) fn block_devices(mut self) -> Result<Vec<u8>> {
        for mount in mounts()? {
            let path = PathBuf::from(&mount.source);
            if let Ok(meta) = fs::metadata(&path)
                && mount.source.starts_with("/dev/")
            {
                self.add(&path, path.as_os_str().as_bytes(), &meta);
            }
        }
        Ok(self.records)
    }

    /// Adds a file that was not seen before, if it has resident pages. A file that cannot be
    /// opened is left out.
    fn add(&mut self, path: &Path, name: &[u8], meta: &Metadata) {
        if self.seen.insert((meta.dev(), meta.ino())) {
            self.add_name(path, name, meta);
        }
    }

    /// Adds one name of a file.
    fn add_name(&mut self, path: &Path, name: &[u8], meta: &Metadata) {
        let flags = libc::O_NOATIME | libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let Ok(mut file) = opened else { return };
        // `stat` reports no size for a block device, but seeking to its end does.
        let Ok(size) = file.seek(SeekFrom::End(0)) else { return };
        match self.resident(&file, size) {
            Ok(pages) if pages.is_empty() => {}
            Ok(pages) => {
                let head = [name.len() as u64, meta.dev(), meta.ino(), size, pages.len() as u64];
                self.records.extend(head.iter().flat_map(|field| field.to_le_bytes()));
                self.records.extend_from_slice(name);
                for (index, entry) in pages {
                    self.records.extend_from_slice(&index.to_le_bytes());
                    self.records.extend_from_slice(&entry.to_le_bytes());
                }
            }
            Err(error) => say(format_args!("lab: {}: {error}", path.display())),
        }
    }

    /// Page indices and pagemap entries of the resident pages of `file`.
    fn resident(&self, file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        for start in (0..size).step_by(usize::try_from(WINDOW).map_err(io::Error::other)?) {
            let length = usize::try_from(WINDOW.min(size - start)).map_err(io::Error::other)?;
            let window = Mapping::file(file, start, length)?;
            window.advise(0, length, Advice::Random)?;
            let residency = window.residency()?;
            let resident =
                || residency.iter().enumerate().filter(|(_, here)| **here).map(|(index, _)| index);
            for page in resident() {
                window.touch(page * PAGE)?;
            }
            for page in resident() {
                let address = window.address() + page * PAGE;
                let mut entry = [0; 8];
                self.pagemap.read_exact_at(&mut entry, (address / PAGE * 8) as u64)?;
                let entry = u64::from_le_bytes(entry);
                if entry & PRESENT != 0 {
                    found.push((start / PAGE as u64 + page as u64, entry));
                }
            }
        }
        Ok(found)
    }
}

/// Regular files under `root` on the same file system. Folders that cannot be read are left out.
fn walk(root: &Path, device: u64) -> Vec<(PathBuf, Metadata)> {
    let mut files = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            // Only folders are mount points here; an overlay's files may have other devices.
            if meta.is_dir() && meta.dev() == device {
                pending.push(entry.path());
            } else if meta.is_file() {
                files.push((entry.path(), meta));
            }
        }
    }
    files
}

/// The open files and mapped files of all processes, as links in `/proc`.
fn process_links() -> Vec<PathBuf> {
    let mut links = Vec::new();
    for pid in super::dump::processes() {
        for folder in ["fd", "map_files"] {
            let folder = PathBuf::from(format!("/proc/{pid}/{folder}"));
            let Ok(entries) = fs::read_dir(folder) else { continue };
            links.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    links
}

fn mounts() -> Result<Vec<Mount>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

/// `id parent major:minor root POINT options [tags...] - KIND SOURCE options` (proc(5)).
fn parse_mount(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut tail = tail.split(' ');
    Some(Mount {
        point: PathBuf::from(head.split(' ').nth(4)?),
        kind: tail.next()?.to_owned(),
        source: tail.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn mounts_are_parsed_with_and_without_tags() {
        let plain = "24 1 254:0 / / rw,relatime - ext4 /dev/vda rw";
        let tagged = "25 24 0:21 / /dev/shm rw shared:3 master:1 - tmpfs tmpfs rw,inode64";
        let mount = |point: &str, kind: &str, source: &str| Mount {
            point: point.into(),
            kind: kind.to_owned(),
            source: source.to_owned(),
        };
        assert_eq!(parse_mount(plain), Some(mount("/", "ext4", "/dev/vda")));
        assert_eq!(parse_mount(tagged), Some(mount("/dev/shm", "tmpfs", "tmpfs")));
        assert_eq!(parse_mount("garbage"), None);
    }

    #[test]
    fn resident_pages_are_found_and_holes_are_not() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 2 * PAGE]).unwrap();
        file.as_file().set_len(10 * PAGE as u64).unwrap();
        let residency = Residency::new().unwrap();
        let size = 10 * PAGE as u64;
        let pages = residency.resident(file.as_file(), size).unwrap();
        let indices: Vec<_> = pages.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, [0, 1]);
    }
}
