//! Whether a file is still as it was.

use super::open::length;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time stamps are taken from a clock that ticks at least 100 times a second, so that a write in
/// the same tick as the one before leaves them as they are. Two ticks.
const TICKS: Duration = Duration::from_millis(20);

/// What changes when a file is written to, cut or extended.
///
/// A write moves the time of the last write, and a program that puts that back moves the time of
/// the last change. Writes through a mapping move them, too, when a page is first written to after
/// it was last brought to the disk; on tmpfs and hugetlbfs they do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    bytes: u64,
    /// Time of the last write to the contents, in seconds and nanoseconds.
    written: (i64, i64),
    /// Time of the last change of contents, names, owner or rights.
    changed: (i64, i64),
    links: u64,
    mode: u32,
    owner: (u32, u32),
}

impl Stamp {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            bytes: if metadata.is_file() { metadata.len() } else { length(file)? },
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            links: metadata.nlink(),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
        })
    }

    /// A stamp that each later write differs from. Waits some milliseconds if the file was written
    /// to a moment ago.
    pub(super) fn settled(file: &File) -> io::Result<Self> {
        let stamp = Self::of(file)?;
        let (seconds, nanoseconds) = stamp.changed.max(stamp.written);
        let changed = u64::try_from(seconds).ok().zip(u32::try_from(nanoseconds).ok());
        let changed = changed.map(|(s, ns)| UNIX_EPOCH + Duration::new(s, ns));
        let age = changed.and_then(|at| SystemTime::now().duration_since(at).ok());
        match age.and_then(|age| TICKS.checked_sub(age)) {
            Some(left) => {
                std::thread::sleep(left);
                Self::of(file)
            }
            None => Ok(stamp),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How the contents differ from what they were at `before`; `None` where nothing but names,
    /// owner or rights did. `is_renamed` says whether the file has another name now.
    pub(super) fn differs_from(&self, before: &Self, is_renamed: bool) -> Option<String> {
        if self.bytes != before.bytes {
            return Some(format!("it had {:#x} bytes and has {:#x}", before.bytes, self.bytes));
        }
        if self.written != before.written {
            return Some("it was written to".to_owned());
        }
        let is_explained = is_renamed
            || self.links != before.links
            || self.mode != before.mode
            || self.owner != before.owner;
        let is_changed = self.changed != before.changed && !is_explained;
        is_changed.then(|| "it was changed, and its time stamp put back".to_owned())
    }
}

/// The name that the system knows an open file by.
pub(super) fn name(file: &File) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}
