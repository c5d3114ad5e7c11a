//! Cleanup actions for things that would outlive the process.

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

/// Attempts to remove a folder, in which a process that is ending may still create files, and the
/// pause between two attempts.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// How long a child may take to die, in seconds.
const DYING: i64 = 5;

/// A cleanup action.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Undo {
    /// Removes a file, or a folder with its contents.
    Remove(PathBuf),
    /// Removes folders that are empty. Subfolders come before their parents.
    RemoveEmpty(Vec<PathBuf>),
    /// Unmounts a file system.
    Unmount(PathBuf),
    /// Restores the former value of a kernel setting.
    Restore {
        /// The setting's file.
        path: PathBuf,
        /// The file's former contents.
        value: String,
    },
    /// Kills a child.
    #[serde(skip)]
    Kill(Arc<OwnedFd>),
}

impl Undo {
    /// Performs the action. If nothing is to be done, that is no error.
    #[expect(clippy::disallowed_methods, reason = "a setting of the kernel's is written as it is")]
    pub(crate) fn perform(&self) -> io::Result<()> {
        match self {
            Self::Remove(path) => remove(path),
            Self::RemoveEmpty(folders) => {
                // Fails at the first folder with results in it.
                let _ = folders.iter().try_for_each(fs::remove_dir);
                Ok(())
            }
            Self::Unmount(path) => {
                // Usually fails because the file system is unmounted already. If it is still
                // mounted, removing the folder fails and reports it.
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

    /// The warning for an action that failed.
    pub(crate) fn failure(&self, error: &io::Error) -> String {
        match self {
            Self::Remove(path) => format!("warning: cannot remove {}: {error}", path.display()),
            Self::RemoveEmpty(_) => format!("warning: cannot remove a folder: {error}"),
            Self::Unmount(path) => format!("warning: cannot unmount {}: {error}", path.display()),
            Self::Restore { path, value } => {
                format!("warning: cannot restore {} to {value}: {error}", path.display())
            }
            Self::Kill(_) => format!("warning: cannot kill a child process: {error}"),
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
