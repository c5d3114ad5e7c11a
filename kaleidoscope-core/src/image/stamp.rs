//! Detects changes of a file.

use super::open::length;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time stamps come from a kernel clock that ticks at least 100 times per second, so a second write
/// in the same tick does not change them. Two ticks.
const CLOCK_GRANULARITY: Duration = Duration::from_millis(20);

/// Metadata that changes when a file is written to, truncated or extended.
///
/// A write updates the modification time; a program that restores that time updates the change
/// time. A write through a mapping updates both when a page is first written to after its last
/// writeback; on tmpfs and hugetlbfs it does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    bytes: u64,
    /// Modification time, in seconds and nanoseconds.
    written: (i64, i64),
    /// Change time (contents, names, owner or permissions), likewise.
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

    /// A stamp that differs from that of any later write. Sleeps up to 20 ms if the file was
    /// written to recently.
    pub(super) fn settled(file: &File) -> io::Result<Self> {
        let stamp = Self::of(file)?;
        let (seconds, nanoseconds) = stamp.changed.max(stamp.written);
        let changed = u64::try_from(seconds).ok().zip(u32::try_from(nanoseconds).ok());
        let changed = changed.map(|(s, ns)| UNIX_EPOCH + Duration::new(s, ns));
        let age = changed.and_then(|at| SystemTime::now().duration_since(at).ok());
        match age.and_then(|age| CLOCK_GRANULARITY.checked_sub(age)) {
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

    /// How the contents differ from those at `before`; `None` if only names, owner or permissions
    /// changed. `is_renamed` says whether the file's name changed.
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

/// The file's name in `/proc/self/fd`.
pub(super) fn name(file: &File) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}
