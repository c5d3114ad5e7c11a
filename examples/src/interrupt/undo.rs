//! Things that would outlive the process, and how each is put right.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often to remove a folder in which a process that ends still makes files, and how long to
/// wait between two attempts.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// How long a child may take to die, in seconds.
const DYING: i64 = 5;

/// Something to be put right.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Undo {
    /// A file or folder that goes away.
    Remove(PathBuf),
    /// Folders that go away if they are empty, each before the one that it is in.
    RemoveEmpty(Vec<PathBuf>),
    /// A file system that goes away.
    Unmount(PathBuf),
    /// A setting of the kernel's that gets its former value.
    Restore {
        /// Its file.
        path: PathBuf,
        /// What was in it.
        value: String,
    },
    /// A child that is killed.
    #[serde(skip)]
    Kill(Arc<OwnedFd>),
}

impl Undo {
    /// Puts it right. What is right already is no error.
    #[expect(clippy::disallowed_methods, reason = "a setting of the kernel's is written as it is")]
    pub(crate) fn perform(&self) -> io::Result<()> {
        match self {
            Self::Remove(path) => remove(path),
            Self::RemoveEmpty(folders) => {
                // Where the work was done there is something in them.
                let _ = folders.iter().try_for_each(fs::remove_dir);
                Ok(())
            }
            Self::Unmount(path) => {
                // Not mounted any more, in all likelihood; else the folder cannot be removed.
                let _ = unmount(path, UnmountFlags::DETACH);
                Ok(())
            }
            Self::Restore { path, value } => fs::write(path, value),
            Self::Kill(child) => {
                // Fails only if it has ended.
                let _ = pidfd_send_signal(child, Signal::KILL);
                let wait = Timespec { tv_sec: DYING, tv_nsec: 0 };
                let _ = poll(&mut [PollFd::new(child, PollFlags::IN)], Some(&wait));
                Ok(())
            }
        }
    }

    /// What is said if it cannot be put right.
    pub(crate) fn failure(&self, error: &io::Error) -> String {
        match self {
            Self::Remove(path) => format!("warning: {} is left: {error}", path.display()),
            Self::RemoveEmpty(_) => format!("warning: a folder is left: {error}"),
            Self::Unmount(path) => format!("warning: {} is left mounted: {error}", path.display()),
            Self::Restore { path, value } => {
                format!("warning: {} is not {value} again: {error}", path.display())
            }
            Self::Kill(_) => format!("warning: a child goes on: {error}"),
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let mut attempt = 1;
    loop {
        let removed = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => {
                return Ok(());
            }
            Err(_) if attempt < ATTEMPTS => attempt += 1,
            removed => return removed,
        }
        std::thread::sleep(PAUSE);
    }
}
