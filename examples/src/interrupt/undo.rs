//! Cleanup actions for things that would outlive the process.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::SendFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Attempts to remove a folder, in which a process that is ending may still create files, and the
/// pause between two attempts.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// How long a child may take to die, in seconds.
const DYING: i64 = 5;

/// How long QEMU may take to let a VM run on.
const RESUMING: Duration = Duration::from_secs(5);

/// QEMU's commands that let a VM run on, and what is in the reply to the second.
const CANCEL: &str = "{\"execute\": \"migrate_cancel\"}\n";
const CONTINUE: &str = "{\"execute\": \"cont\", \"id\": \"kaleidoscope-resumes\"}\n";
const MARK: &str = "kaleidoscope-resumes";

/// Most bytes of QEMU's replies that are read.
const MAX_REPLIES: u64 = 1 << 24;

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
    /// Kills a process that is no child, unless another one has its number by now.
    End {
        /// The process.
        pid: i32,
        /// When it started, in clock ticks since the boot: with the number, its identity.
        started: u64,
    },
    /// Lets a VM of QEMU run on that was paused to be captured.
    Resume {
        /// Its QMP socket, which takes one client at a time.
        socket: PathBuf,
        /// This process's connection to it.
        #[serde(skip)]
        connection: Option<Arc<OwnedFd>>,
    },
    /// Kills a process.
    #[serde(skip)]
    Kill(Arc<OwnedFd>),
}

impl Undo {
    /// Ends the process of this number and pidfd; `None` if it has ended, or if its number is not
    /// known here (another PID namespace).
    pub(crate) fn end_process(pid: u32, process: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Ok(pid @ 1..) = i32::try_from(pid) else { return Ok(None) };
        let started = start_of(pid);
        // If it lives after its start was read, the number was its own then.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let has_ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&now))? > 0;
        Ok(started.filter(|_| !has_ended).map(|started| Self::End { pid, started }))
    }

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
            Self::End { pid, started } => {
                let Some(number) = Pid::from_raw(*pid) else { return Ok(()) };
                // Opened before its start is read: the descriptor is that process's for good.
                match pidfd_open(number, PidfdFlags::empty()) {
                    Ok(process) if start_of(*pid) == Some(*started) => {
                        Self::Kill(Arc::new(process)).perform()
                    }
                    Ok(_) | Err(Errno::SRCH) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Self::Resume { connection: Some(connection), .. } => resume_by(connection),
            Self::Resume { socket, connection: None } => resume_at(socket),
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
            Self::End { pid, .. } => format!("warning: cannot end process {pid}: {error}"),
            Self::Resume { socket, .. } => {
                format!("warning: cannot let the VM at {} run on: {error}", socket.display())
            }
            Self::Kill(_) => format!("warning: cannot kill a process: {error}"),
        }
    }
}

/// Lets a VM run on over a connection whose replies another thread may read. QEMU refuses the
/// command for a moment after a migration, and the other thread may have sent another one before.
fn resume_by(connection: &impl AsFd) -> io::Result<()> {
    send(connection, CANCEL)?;
    for _ in 0..ATTEMPTS {
        send(connection, CONTINUE)?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Lets a VM run on that the process which has ended was connected to.
fn resume_at(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(RESUMING))?;
    stream.set_read_timeout(Some(RESUMING))?;
    stream.write_all(b"{\"execute\": \"qmp_capabilities\"}\n")?;
    send(&stream, CANCEL)?;
    let last = Instant::now() + RESUMING;
    let mut replies = BufReader::new(stream.try_clone()?.take(MAX_REPLIES)).lines();
    loop {
        send(&stream, CONTINUE)?;
        // Other replies and events come before.
        let reply = replies.find(|line| line.as_ref().map_or(true, |line| line.contains(MARK)));
        let reply = reply.ok_or(io::ErrorKind::UnexpectedEof)??;
        if !reply.contains("\"error\"") {
            return Ok(());
        }
        if Instant::now() >= last {
            return Err(io::Error::other(reply));
        }
        std::thread::sleep(PAUSE);
    }
}

fn send(connection: &impl AsFd, command: &str) -> io::Result<()> {
    // The socket takes far more than these bytes at once.
    let sent = rustix::net::send(connection, command.as_bytes(), SendFlags::NOSIGNAL)?;
    if sent == command.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// When a process started, in clock ticks since the boot (field 22 of proc_pid_stat(5)).
fn start_of(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have blanks and parentheses in it.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
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
