//! The handler's process, and what it says.

use crate::double::WATCHDOG;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// `kaleidoscope serve firecracker`. Dropping it kills it.
pub(crate) struct Handler {
    child: Child,
    events: Receiver<Value>,
    pub(crate) socket: PathBuf,
    pub(crate) serving: Value,
}

impl Handler {
    pub(crate) fn start(folder: &Path, memory: &Path, arguments: &[&str]) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_kaleidoscope"));
        Self::start_as(program, folder, memory, arguments)
    }

    /// With a program that is the command, or starts it.
    pub(crate) fn start_as(
        mut command: Command,
        folder: &Path,
        memory: &Path,
        arguments: &[&str],
    ) -> Self {
        let socket = folder.join("uffd.sock");
        command.args(["serve", "firecracker", "--json", "--socket"]).arg(&socket);
        command.arg("--memory").arg(memory).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (sender, events) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        let serving = events.recv_timeout(WATCHDOG).expect("the handler does not start");
        Self { child, events, socket, serving }
    }

    /// The next event, which has to be of this kind.
    pub(crate) fn event(&self, kind: &str) -> Value {
        let event = self.any_event();
        assert_eq!(event["event"], kind, "{event}");
        event
    }

    pub(crate) fn any_event(&self) -> Value {
        self.events.recv_timeout(WATCHDOG).expect("the handler says nothing")
    }

    /// The next event of this kind; others are passed over.
    pub(crate) fn next(&self, kind: &str) -> Value {
        loop {
            let event = self.any_event();
            if event["event"] == kind {
                return event;
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        kill(self.pid(), signal);
    }

    /// Waits for the end of the process.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + WATCHDOG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the handler does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // The second one ends the VMs. Killed alone, one of the two processes starts the other.
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal("-INT");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Sends a signal to a process, which may have ended.
pub(crate) fn kill(pid: u32, signal: &str) {
    let _ = Command::new("kill").args([signal, &pid.to_string()]).stderr(Stdio::null()).status();
}
