//! Cleanup actions for things that would outlive the process.

use crate::failure::Failure;
use crate::qemu::qmp::Qmp;
use crate::socket::connect_within;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::SendFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Attempts to remove a folder, in which a process that is ending may still create files, and the
/// pause between two attempts.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// How long a child may take to die, in seconds.
const DYING: i64 = 5;

/// How long QEMU may take to let a VM run on: its main loop may be busy with a disk.
const RESUMING: Duration = Duration::from_secs(300);

/// How long QEMU may take to reply on one connection, before another one is made.
const REPLY: Duration = Duration::from_secs(60);

/// QEMU's command that ends a migration.
const CANCEL: &str = "migrate_cancel";

/// What commands have in place of a number where another thread reads the replies.
const MARK: &str = "kaleidoscope-resumes";

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
    /// Lets a VM of QEMU that was to be captured run on, with its former settings.
    Resume {
        /// Its QMP socket, which takes one client at a time.
        socket: PathBuf,
        /// QMP commands with their arguments. QEMU refuses them for a moment after a migration.
        commands: Vec<(String, Value)>,
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
            Self::Resume { connection: Some(connection), commands, .. } => {
                resume_by(connection, commands)
            }
            Self::Resume { socket, commands, connection: None } => {
                resume_at(socket, commands, RESUMING)
            }
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
/// commands for a moment after a migration, and the other thread may have sent another one before.
fn resume_by(connection: &impl AsFd, commands: &[(String, Value)]) -> io::Result<()> {
    let line = |command: &str, arguments: &Value| {
        json!({ "execute": command, "arguments": arguments, "id": MARK }).to_string() + "\n"
    };
    send(connection, &line(CANCEL, &json!({})))?;
    let lines: String = commands.iter().map(|(command, value)| line(command, value)).collect();
    for _ in 0..ATTEMPTS {
        send(connection, &lines)?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Lets a VM run on that the process which has ended was connected to.
fn resume_at(socket: &Path, commands: &[(String, Value)], time: Duration) -> io::Result<()> {
    let last = Instant::now() + time;
    let mut left: Vec<_> = commands.iter().collect();
    while let Err(failure) = resume_within(socket, &mut left, last) {
        if Instant::now() >= last {
            return Err(io::Error::other(failure.to_string()));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Sends commands over one connection until QEMU has followed them all. Those that it has followed
/// are removed from `left`.
fn resume_within(
    socket: &Path,
    left: &mut Vec<&(String, Value)>,
    last: Instant,
) -> Result<(), Failure> {
    let stream = match connect_within(socket, Duration::ZERO, &mut || true) {
        Ok(stream) => stream,
        // QEMU has ended, and the VM with it.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            return Ok(());
        }
        Err(error) => return Err(Failure::at(socket, error)),
    };
    let mut qmp = Qmp::greet(socket, stream, REPLY, REPLY)?;
    match qmp.execute(CANCEL, json!({})) {
        Err(failure) if qmp.is_lost() => return Err(failure),
        // Without a migration there is nothing to end.
        _ => {}
    }
    loop {
        let mut failed = None;
        left.retain(|(command, arguments)| {
            if qmp.is_lost() {
                return true;
            }
            let done = qmp.execute(command, arguments.clone());
            let is_refused = done.is_err();
            failed = done.err().or_else(|| failed.take());
            is_refused
        });
        match failed {
            None => return Ok(()),
            Some(failure) if qmp.is_lost() || Instant::now() >= last => return Err(failure),
            Some(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn send(connection: &impl AsFd, commands: &str) -> io::Result<()> {
    // The socket takes far more than these bytes at once. If it does not, QEMU reads nothing.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = rustix::net::send(connection, commands.as_bytes(), flags)?;
    if sent == commands.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    /// Answers each command on a connection with the next of these; `None` closes the connection.
    /// Returns the commands.
    fn answer(stream: UnixStream, answers: &[Option<&str>]) -> Vec<String> {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        (&stream).write_all(b"{\"QMP\": {}}\n").unwrap();
        let mut commands = Vec::new();
        for answer in answers {
            let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            commands.push(line["execute"].as_str().unwrap().to_owned());
            let Some(answer) = answer else { break };
            let reply = match *answer {
                "yes" => json!({ "return": {}, "id": line["id"] }),
                why => json!({ "error": { "desc": why }, "id": line["id"] }),
            };
            (&stream).write_all(format!("{reply}\n").as_bytes()).unwrap();
        }
        commands
    }

    #[test]
    fn a_vm_is_resumed_over_as_many_connections_as_it_takes() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let peer = std::thread::spawn(move || {
            let accept = || listener.accept().unwrap().0;
            // QEMU does not greet, then ends the connection within a command.
            drop(accept());
            let yes = Some("yes");
            let first = answer(accept(), &[yes, None]);
            // It follows one command, and the others once the migration has ended.
            let busy = Some("There's a migration process in progress");
            let second = answer(accept(), &[yes, yes, yes, busy, busy, yes, None]);
            let third = answer(accept(), &[yes, yes, yes]);
            [first, second, third]
        });
        let commands = ["cont", "set-a", "set-b"].map(|name| (name.to_owned(), json!({})));
        let undo = Undo::Resume { socket, commands: commands.to_vec(), connection: None };
        // As the guard gets it.
        let text = serde_json::to_string(&undo).unwrap();
        serde_json::from_str::<Undo>(&text).unwrap().perform().unwrap();
        let begin = ["qmp_capabilities", "migrate_cancel"];
        let [first, second, third] = peer.join().unwrap();
        assert_eq!(first, begin);
        assert_eq!(second, [&begin[..], &["cont", "set-a", "set-b", "set-a", "set-b"]].concat());
        assert_eq!(third, [&begin[..], &["set-b"]].concat());
        // Once QEMU has ended, nothing is left to do.
        undo.perform().unwrap();
    }

    #[test]
    fn a_connection_that_takes_nothing_holds_nothing_up() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let commands = [("cont".to_owned(), json!({ "x": "y".repeat(1 << 20) }))];
        assert!(resume_by(&ours, &commands).is_err());
    }
}
