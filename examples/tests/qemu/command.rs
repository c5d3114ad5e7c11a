//! The command `kaleidoscope`, while it runs.

use crate::guest::LIMIT;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// A run whose events are lines of JSON.
pub(crate) struct Run {
    process: Child,
    events: BufReader<ChildStdout>,
    said: NamedTempFile,
}

impl Run {
    /// Starts the command with these words.
    pub(crate) fn start(words: &[&str]) -> Self {
        let said = NamedTempFile::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kaleidoscope"));
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(said.path()).unwrap());
        let mut process = command.spawn().unwrap();
        let events = BufReader::new(process.stdout.take().unwrap());
        Self { process, events, said }
    }

    /// The next event, which has to be of this name.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        let said = std::fs::read_to_string(self.said.path()).unwrap();
        let event: Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}; {said}"));
        assert_eq!(event["event"], name, "{event}; {said}");
        event
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal_if_running(&mut self, signal: Signal) {
        // Not reaped yet, it still has its number.
        if self.is_running() {
            self.signal(signal);
        }
    }

    /// Whether it runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits for the end: the exit code, and what was said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return (status.code(), std::fs::read_to_string(self.said.path()).unwrap());
            }
            assert!(start.elapsed() < LIMIT, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The path in a field of an event.
pub(crate) fn path(event: &Value, field: &str) -> PathBuf {
    PathBuf::from(event[field].as_str().unwrap())
}
