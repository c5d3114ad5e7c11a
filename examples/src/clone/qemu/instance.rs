//! Clones on this host: processes of QEMU that map the memory image privately.

use super::arguments::{Own, derive};
use super::disks;
use super::report::{Ended, Started};
use crate::failure::Failure;
use crate::interrupt::{Armed, Undo, arm_with, child};
use crate::lines::last_lines;
use crate::map_output::table::printable;
use crate::qemu::folder::{Captured, RAM, STATE};
use crate::qemu::qmp::Qmp;
use crate::stdio::say;
use kaleidoscope_core::clone::CloneId;
use serde_json::{Value, json};
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a clone may take to listen, and to load its state.
const START: Duration = Duration::from_secs(30);

/// QEMU's messages, in a clone's folder.
const MESSAGES: &str = "messages.txt";

/// Most bytes of QEMU's messages that are quoted.
const QUOTED: u64 = 1 << 16;

/// The longest path of a Unix socket.
const LONGEST_SOCKET: usize = 107;

/// The clones of a captured VM. They end when this is dropped.
pub(super) struct Clones<'c> {
    captured: &'c Captured,
    running: Vec<Instance>,
    last: u32,
    /// Whether QEMU's version was found to be another one.
    has_warned: Cell<bool>,
}

/// A clone.
struct Instance {
    number: u32,
    process: Child,
    start: Instant,
    /// What QEMU says.
    messages: PathBuf,
    /// Kills the process.
    armed: Option<Armed>,
    /// Removes the folder.
    _folder: Armed,
}

impl<'c> Clones<'c> {
    /// No clones yet.
    pub(super) fn new(captured: &'c Captured) -> Result<Self, Failure> {
        for disk in &captured.machine.disks {
            if !disk.image.exists() {
                return Err(Failure::at(&disk.image, "the disk's image is not there"));
            }
        }
        Ok(Self { captured, running: Vec::new(), last: 0, has_warned: Cell::new(false) })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Starts a clone, which runs unless it is to stay paused.
    pub(super) fn start(&mut self, runs: bool) -> Result<Started, Failure> {
        let start = Instant::now();
        let (number, path, folder) = self.folder()?;
        let machine = &self.captured.machine;
        let id = CloneId::random().map_err(Failure::new)?.to_string();
        let overlays: Vec<_> =
            (0..machine.disks.len()).map(|n| path.join(format!("disk-{n}.qcow2"))).collect();
        for (disk, overlay) in machine.disks.iter().zip(&overlays) {
            disks::make(overlay, disk)?;
        }
        let qmp = path.join("qmp.sock");
        if qmp.as_os_str().len() > LONGEST_SOCKET {
            let what = format!("a socket's path has at most {LONGEST_SOCKET} bytes");
            return Err(Failure::at(&qmp, what).hint("capture into a folder with a shorter path"));
        }
        let own = Own {
            folder: path.clone(),
            image: self.captured.path(RAM),
            overlays,
            mac: id.get(..6).and_then(|mac| u32::from_str_radix(mac, 16).ok()).unwrap_or(number),
            generation: uuid(&id),
        };
        let arguments = derive(self.captured, &own, &qmp)?;
        let mut command = Command::new(&machine.program);
        command.args(&arguments).current_dir(&machine.folder).stdin(Stdio::null());
        // A file takes as much as QEMU says; a pipe that nothing reads would hold it up.
        let messages = path.join(MESSAGES);
        let log = log(&messages).map_err(|error| Failure::unwritable(&messages, &error))?;
        command.stdout(Stdio::null()).stderr(log);
        let (process, armed) = child::spawn(&mut command).map_err(|error| {
            Failure::at(&machine.program, format_args!("cannot start: {error}"))
        })?;
        let mut instance =
            Instance { number, process, start, messages, armed: Some(armed), _folder: folder };
        let loaded = self.load(&qmp, runs);
        let ports = match loaded {
            Ok(ports) => ports,
            Err(failure) => return Err(instance.explained(failure)),
        };
        let started = Started {
            clone: number,
            process: instance.process.id(),
            qmp: qmp.display().to_string(),
            folder: path.display().to_string(),
            start_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
            paused: !runs,
            ports,
        };
        self.running.push(instance);
        Ok(started)
    }

    /// Makes the next folder that is free.
    fn folder(&mut self) -> Result<(u32, PathBuf, Armed), Failure> {
        loop {
            self.last += 1;
            let path = self.captured.path(&format!("clone-{}", self.last));
            // Another command may have clones of the same folder.
            if fs::symlink_metadata(&path).is_ok() && self.last < 100_000 {
                continue;
            }
            let make = || fs::DirBuilder::new().mode(0o700).create(&path);
            let made = arm_with(Undo::Remove(path.clone()), make);
            let ((), armed) = made.map_err(|error| {
                Failure::io(format_args!("{}: cannot create it: {error}", path.display()), &error)
            })?;
            return Ok((self.last, path, armed));
        }
    }

    /// Loads the state. Returns the host ports of the clone's networks.
    fn load(&self, socket: &Path, runs: bool) -> Result<Vec<String>, Failure> {
        let mut qmp = Qmp::connect(socket, START)?;
        let emulator = qmp.version()?;
        if emulator != self.captured.machine.emulator && !self.has_warned.replace(true) {
            let expected = printable(&self.captured.machine.emulator);
            let found = printable(&emulator);
            say(format_args!("warning: QEMU {found} runs the clones of a VM of QEMU {expected}"));
        }
        let set = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        qmp.execute("migrate-set-capabilities", set)?;
        let path = self.captured.path(STATE);
        let state = File::open(&path).map_err(|error| Failure::at(&path, error))?;
        qmp.pass(state.as_fd())?;
        let uri = format!("fd:{}", crate::qemu::qmp::PASSED);
        qmp.execute("migrate-incoming", json!({ "uri": uri }))?;
        let deadline = Instant::now() + START;
        loop {
            let answer = qmp.execute("query-migrate", json!({}))?;
            match answer.get("status").and_then(Value::as_str) {
                Some("completed") => break,
                Some("failed") => {
                    return Err(Failure::at(&path, "QEMU cannot load the state"));
                }
                _ if Instant::now() >= deadline => {
                    return Err(Failure::at(&path, "QEMU does not load the state in time"));
                }
                _ => sleep(Duration::from_millis(1)),
            }
        }
        if runs {
            qmp.execute("cont", json!({}))?;
        }
        let network = qmp.human("info usernet").unwrap_or_default();
        Ok(ports(&network))
    }

    /// Clones that have ended since the last call.
    pub(super) fn ended(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.running.retain_mut(|instance| {
            let Ok(Some(status)) = instance.process.try_wait() else { return true };
            ended.push(Ended {
                clone: instance.number,
                success: status.success(),
                message: instance.messages(),
                seconds: instance.start.elapsed().as_secs_f64(),
            });
            false
        });
        ended
    }
}

impl Instance {
    /// What QEMU has said, if it has ended.
    fn messages(&mut self) -> String {
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            return String::new();
        }
        last_lines(&String::from_utf8_lossy(&end(&self.messages).unwrap_or_default()), 5)
    }

    /// The failure, with what QEMU says.
    fn explained(&mut self, failure: Failure) -> Failure {
        // QEMU ends by itself after an error, in a moment.
        let deadline = Instant::now() + Duration::from_millis(500);
        while Instant::now() < deadline && matches!(self.process.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(10));
        }
        match self.messages() {
            messages if messages.is_empty() => failure,
            messages => Failure::new(format_args!("clone {}: {messages}", self.number)),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(armed) = self.armed.take() {
            armed.disarm();
        }
    }
}

/// Makes the file for QEMU's messages.
#[expect(clippy::disallowed_methods, reason = "another process writes to it until that ends")]
fn log(path: &Path) -> io::Result<File> {
    File::options().append(true).create_new(true).open(path)
}

/// The end of a file.
fn end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(QUOTED);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.take(QUOTED).read_to_end(&mut text)?;
    Ok(text)
}

/// A random UUID, of 32 hexadecimal digits.
fn uuid(digits: &str) -> String {
    let digits: String = digits.chars().filter(char::is_ascii_hexdigit).take(32).collect();
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or("0");
    // Version 4, variant 1.
    format!("{}-{}-4{}-a{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

/// Host ports that lead to a guest, from `info usernet`: `tcp 127.0.0.1:40123 to :22`.
fn ports(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.contains("HOST_FORWARD"));
    lines
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [protocol, _, from, port, to, guest, ..] = words.as_slice() else { return None };
            let protocol = protocol.split('[').next()?.to_lowercase();
            Some(format!("{protocol} {from}:{port} to {to}:{guest}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_long_messages_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        assert!(end(&path).is_err());
        fs::write(&path, "x\n".repeat(1 << 17) + "last").unwrap();
        let found = end(&path).unwrap();
        assert!(found.len() as u64 == QUOTED && found.ends_with(b"x\nlast"));
        assert!(log(&path).is_err(), "it is another's");
    }

    #[test]
    fn ports_and_generations_are_in_qemu_s_form() {
        let text = "Hub -1 (n):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
                    TCP[HOST_FORWARD]  17       127.0.0.1 40123       10.0.2.15    22     0     0\n";
        assert_eq!(ports(text), ["tcp 127.0.0.1:40123 to 10.0.2.15:22"]);
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(uuid(id), "01234567-89ab-4def-a123-456789abcdef");
    }
}
