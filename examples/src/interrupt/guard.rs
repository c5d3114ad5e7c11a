//! A process that puts right what a killed one cannot.
//!
//! It is this same program, in a process group of its own, and reads from a pipe what is to be
//! undone and what is not any more. The pipe ends when the command ends, however that was; then the
//! rest is undone. So the kernel's settings come back even after SIGKILL, unless that goes to both.

use super::undo::Undo;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};

/// The subcommand's name.
pub(crate) const NAME: &str = "undo-guard";

/// This program, also when its file has been replaced.
const SELF: &str = "/proc/self/exe";

/// Longest line that is read.
const MAX_LINE: u64 = 1 << 16;

/// A line to the guard.
#[derive(Serialize, Deserialize)]
enum Line {
    Arm(u64, Undo),
    Forget(u64),
}

/// The command's end of the pipe, if there is a guard.
pub(super) struct Guard(Option<ChildStdin>);

impl Guard {
    pub(super) const fn none() -> Self {
        Self(None)
    }

    /// Starts the guard, unless there is one. Without it all is undone but after SIGKILL.
    #[expect(clippy::disallowed_methods, reason = "this child is to outlive the command")]
    pub(super) fn start(&mut self) {
        if self.0.is_some() || cfg!(test) {
            return;
        }
        let mut command = Command::new(SELF);
        command.arg(NAME).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // So that Ctrl-C is not for it.
        let Ok(mut child) = command.process_group(0).spawn() else { return };
        let (Some(pipe), Some(mut ready)) = (child.stdin.take(), child.stdout.take()) else {
            return;
        };
        // From then on it heeds no signal. If it cannot run, the pipe ends.
        if ready.read_exact(&mut [0]).is_ok() {
            self.0 = Some(pipe);
        }
    }

    pub(super) fn arm(&mut self, number: u64, undo: &Undo) {
        if !matches!(undo, Undo::Kill(_)) {
            self.tell(&Line::Arm(number, undo.clone()));
        }
    }

    pub(super) fn forget(&mut self, number: u64) {
        self.tell(&Line::Forget(number));
    }

    fn tell(&mut self, line: &Line) {
        let Some(pipe) = &mut self.0 else { return };
        // A path that is no text stays out; then it is as without a guard.
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
    /// Guards.
    pub(crate) fn run(&self) {
        super::block();
        let mut out = std::io::stdout().lock();
        if out.write_all(b"\n").and_then(|()| out.flush()).is_err() {
            return;
        }
        for undo in left(std::io::stdin().lock()).into_values().rev() {
            // There is nobody to tell.
            let _ = undo.perform();
        }
    }
}

/// What is armed when the input ends.
fn left(mut lines: impl BufRead) -> BTreeMap<u64, Undo> {
    let mut armed = BTreeMap::new();
    let mut text = Vec::new();
    loop {
        text.clear();
        // A read that fails is the end too.
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
            // Half a line, of a process that was killed while it wrote: it had not begun.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_is_not_undone() {
        let undo = |name: &str| Undo::Remove(name.into());
        let lines = [Line::Arm(0, undo("a")), Line::Arm(1, undo("b")), Line::Forget(0)];
        let mut text: String =
            lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        text.push_str("{\"Arm\":[2,{\"Rem");
        let left = left(text.as_bytes());
        assert_eq!(left.keys().collect::<Vec<_>>(), [&1]);
        assert!(matches!(&left[&1], Undo::Remove(path) if path.as_os_str() == "b"));
    }
}
