//! A guard process that cleans up after a killed command.
//!
//! The guard is the same program in its own process group. It reads from a pipe which cleanup
//! actions are armed and which are removed. When the command ends for any reason, the pipe closes,
//! and the guard performs the remaining actions. Kernel settings are thus restored even after
//! SIGKILL, unless both processes are killed.

use super::undo::Undo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The subcommand's name.
pub(crate) const NAME: &str = "undo-guard";

/// This program, even if its file has been replaced.
const SELF: &str = "/proc/self/exe";

/// Longest accepted line, in bytes.
const MAX_LINE: u64 = 1 << 16;

/// A message to the guard, sent as a line of JSON.
#[derive(Serialize, Deserialize)]
enum Line {
    Arm(u64, Undo),
    Forget(u64),
    /// Forget all actions with lower numbers.
    ForgetBelow(u64),
}

/// The command's end of the pipe, if there is a guard.
pub(super) struct Guard(Option<File>);

impl Guard {
    pub(super) const fn none() -> Self {
        Self(None)
    }

    /// Starts the guard, unless it runs. If it cannot start, only cleanup after SIGKILL is lost.
    #[expect(clippy::disallowed_methods, reason = "this child is to outlive the command")]
    pub(super) fn start(&mut self) {
        if self.0.is_some() || cfg!(test) {
            return;
        }
        let mut command = Command::new(SELF);
        command.arg(NAME).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Its own process group, so that Ctrl-C does not reach it.
        let Ok(mut child) = command.process_group(0).spawn() else { return };
        let (Some(pipe), Some(mut ready)) = (child.stdin.take(), child.stdout.take()) else {
            return;
        };
        // The guard writes a byte once it has blocked signals. If it cannot run, the pipe closes.
        if ready.read_exact(&mut [0]).is_ok() {
            self.0 = Some(File::from(OwnedFd::from(pipe)));
        }
    }

    /// Another end of the pipe: the guard performs its actions when all are closed.
    pub(super) fn share(&self) -> io::Result<Option<OwnedFd>> {
        self.0.as_ref().map(|pipe| pipe.try_clone().map(OwnedFd::from)).transpose()
    }

    /// Whether there is no guard, or it has died.
    pub(super) fn is_lost(&self) -> bool {
        let Some(pipe) = &self.0 else { return true };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Reported when nothing can read from the pipe any more.
        let mut ends = [PollFd::new(pipe, PollFlags::empty())];
        poll(&mut ends, Some(&now)).is_ok_and(|n| n > 0)
    }

    /// Gives up a guard that has died.
    pub(super) fn give_up(&mut self) {
        self.0 = None;
    }

    /// Uses the guard of another process that has died.
    pub(super) fn adopt(&mut self, pipe: OwnedFd) {
        let mut pipe = File::from(pipe);
        // That process may have died within a line.
        self.0 = pipe.write_all(b"\n").is_ok().then_some(pipe);
    }

    pub(super) fn arm(&mut self, number: u64, undo: &Undo) {
        if !matches!(undo, Undo::Kill(_)) {
            self.send(&Line::Arm(number, undo.clone()));
        }
    }

    pub(super) fn forget(&mut self, number: u64) {
        self.send(&Line::Forget(number));
    }

    /// Forgets the actions of another process, whose numbers are lower.
    pub(super) fn forget_below(&mut self, number: u64) {
        self.send(&Line::ForgetBelow(number));
    }

    fn send(&mut self, line: &Line) {
        let Some(pipe) = &mut self.0 else { return };
        // A path that is not UTF-8 cannot be sent; its action is not guarded.
        let Ok(mut text) = serde_json::to_string(line) else { return };
        text.push('\n');
        if pipe.write_all(text.as_bytes()).is_err() {
            self.0 = None;
        }
    }
}

/// Waits for the end of the command that started it, and undoes what that left. Not for users.
#[derive(Debug, clap::Args)]
pub(crate) struct Args;

impl Args {
    /// Waits until standard input closes, and performs the remaining actions.
    pub(crate) fn run(&self) {
        super::block();
        let mut out = std::io::stdout().lock();
        if out.write_all(b"\n").and_then(|()| out.flush()).is_err() {
            return;
        }
        for undo in remaining(std::io::stdin().lock()).into_values().rev() {
            // The command has ended: errors cannot be reported.
            let _ = undo.perform();
        }
    }
}

/// The actions that are armed when the input ends.
fn remaining(mut lines: impl BufRead) -> BTreeMap<u64, Undo> {
    let mut armed = BTreeMap::new();
    let mut text = Vec::new();
    loop {
        text.clear();
        // A failed read counts as the end, too.
        match lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut text) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return armed,
        }
        match serde_json::from_slice(&text) {
            Ok(Line::Arm(number, undo)) => {
                armed.insert(number, undo);
            }
            Ok(Line::Forget(number)) => {
                armed.remove(&number);
            }
            Ok(Line::ForgetBelow(number)) => armed = armed.split_off(&number),
            // A partial line: the command was killed while it wrote, before it created anything.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_actions_are_not_performed() {
        let undo = |name: &str| Undo::Remove(name.into());
        let lines = [
            Line::Arm(0, undo("a")),
            Line::Arm(5, undo("c")),
            Line::Arm(6, undo("b")),
            Line::Forget(5),
            Line::ForgetBelow(5),
        ];
        let mut text: String =
            lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        text.push_str("{\"Arm\":[2,{\"Rem");
        let armed = remaining(text.as_bytes());
        assert_eq!(armed.keys().collect::<Vec<_>>(), [&6]);
        assert!(matches!(&armed[&6], Undo::Remove(path) if path.as_os_str() == "b"));
    }
}
