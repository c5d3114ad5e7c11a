//! The other process of the two.

use super::STARTER;
use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// The variable that tells a process what it is.
pub(super) const ROLE: &str = "KALEIDOSCOPE_ROLE";

/// Descriptors by name; several may have one name.
pub(super) type Kept = BTreeMap<String, Vec<OwnedFd>>;

/// The first descriptor that is passed (sd_listen_fds(3)).
const FIRST: i32 = 3;

/// A process that is watched.
#[derive(Debug)]
pub(super) struct Process {
    pidfd: OwnedFd,
    child: Option<Child>,
}

impl Process {
    /// The process that started this one, by the pidfd that it passed.
    pub(super) fn starter(pidfd: OwnedFd) -> Self {
        Self { pidfd, child: None }
    }

    /// Starts this command again, in a role, with these descriptors. It outlives this process, and
    /// signals of the terminal do not reach it.
    #[expect(clippy::disallowed_methods, reason = "this child is to outlive the command")]
    pub(super) fn start(role: &str, notify: &Path, kept: &Kept) -> io::Result<Self> {
        // The shell sets the number of the process in which the program then runs.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(program());
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let (mut names, mut mappings) = (Vec::new(), Vec::new());
        let own = (STARTER, std::slice::from_ref(&own));
        let kept = kept.iter().map(|(name, all)| (name.as_str(), all.as_slice()));
        for (name, descriptors) in kept.chain([own]) {
            for descriptor in descriptors {
                let child_fd = FIRST + i32::try_from(names.len()).map_err(io::Error::other)?;
                mappings.push(FdMapping { parent_fd: descriptor.try_clone()?, child_fd });
                names.push(name);
            }
        }
        command
            .args(std::env::args_os().skip(1))
            .env(ROLE, role)
            .env("NOTIFY_SOCKET", notify)
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .fd_mappings(mappings)
            .map_err(io::Error::other)?;
        let mut child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = number.map(|number| pidfd_open(number, PidfdFlags::empty()));
        match pidfd {
            Some(Ok(pidfd)) => Ok(Self { pidfd, child: Some(child) }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err(io::Error::other("the system gives no descriptor for a process"))
            }
        }
    }

    pub(super) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Whether the process has ended.
    pub(super) fn has_ended(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|n| n > 0)
    }

    /// How it ended, if it was a child of this process.
    pub(super) fn status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.wait().ok()
    }
}

/// The program's file: a newer one, if it was replaced since.
fn program() -> OsString {
    let path = std::env::current_exe().unwrap_or_default();
    // The kernel's mark of a file that has lost its name.
    let text = path.to_string_lossy();
    let path = text.strip_suffix(" (deleted)").map_or(path.clone(), PathBuf::from);
    if path.is_file() { path.into() } else { "/proc/self/exe".into() }
}
