//! A connection to QEMU's machine protocol (QMP): one JSON object a line, events between replies.
//!
//! Every reply has a deadline and a bound on its length. Descriptors go along with commands.

use crate::failure::Failure;
use crate::socket::connect_within;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest accepted line in bytes. `info mtree` of a large machine has a few hundred kilobytes.
const LONGEST_LINE: usize = 16 << 20;

/// Longest wait for a reply.
const REPLY: Duration = Duration::from_secs(20);

/// Most names of events that are kept. QEMU has fewer.
const EVENTS: usize = 1024;

/// The name of a descriptor that was passed.
pub(crate) const PASSED: &str = "kaleidoscope";

/// A connection, ready for commands.
#[derive(Debug)]
pub(crate) struct Qmp {
    path: PathBuf,
    stream: UnixStream,
    received: Vec<u8>,
    /// How much of `received` was searched for the end of a line.
    searched: usize,
    next_id: u64,
    /// How long QEMU may take to reply.
    reply_timeout: Duration,
    /// Whether the last command got no reply.
    is_lost: bool,
    /// QEMU's clock at the latest event of each name.
    events: BTreeMap<String, Duration>,
}

impl Qmp {
    /// Connects to a socket, and waits for at most `time` for QEMU to listen and to greet. QEMU
    /// serves one client at a time.
    pub(crate) fn connect(path: &Path, time: Duration) -> Result<Self, Failure> {
        let deadline = Instant::now() + time;
        let stream = connect_within(path, time, &mut || true).map_err(|error| {
            Failure::at(path, format_args!("cannot connect: {error}"))
                .hint("QEMU listens there if it was started with -qmp unix:PATH,server=on,wait=off")
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        Self::greet(path, stream, left.max(Duration::from_secs(1)), REPLY)
    }

    /// Begins with a connection to `path`, and waits for at most `time` for QEMU to greet, and for
    /// `reply_timeout` for each reply.
    pub(crate) fn greet(
        path: &Path,
        stream: UnixStream,
        time: Duration,
        reply_timeout: Duration,
    ) -> Result<Self, Failure> {
        let mut qmp = Self {
            path: path.to_owned(),
            stream,
            received: Vec::new(),
            searched: 0,
            next_id: 0,
            reply_timeout,
            is_lost: false,
            events: BTreeMap::new(),
        };
        let deadline = Instant::now() + time;
        let greeting = qmp.line(deadline)?.ok_or_else(|| {
            qmp.failed("no greeting came").hint("another program may be connected to this socket")
        })?;
        if greeting.get("QMP").is_none() {
            return Err(qmp.failed("it does not speak QEMU's machine protocol"));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The connection, for a cleanup action.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd, Failure> {
        Ok(self.stream.try_clone().map_err(|error| self.failed(error))?.into())
    }

    /// The number of the process that listens.
    pub(crate) fn peer(&self) -> Result<i32, Failure> {
        let peer = rustix::net::sockopt::socket_peercred(&self.stream);
        Ok(peer.map_err(|error| self.failed(error))?.pid.as_raw_pid())
    }

    /// Whether the last command got no reply, not even a refusal.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    fn failed(&self, what: impl std::fmt::Display) -> Failure {
        Failure::at(&self.path, what)
    }

    /// Runs a command and returns its result.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        self.run(command, arguments, None)
    }

    /// Passes a descriptor to QEMU, under the name [`PASSED`].
    pub(crate) fn pass(&mut self, descriptor: BorrowedFd<'_>) -> Result<(), Failure> {
        self.run("getfd", json!({ "fdname": PASSED }), Some(descriptor)).map(drop)
    }

    fn run(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, Failure> {
        self.is_lost = true;
        let deadline = Instant::now() + self.reply_timeout;
        let id = self.next_id;
        self.next_id += 1;
        let line = json!({ "execute": command, "arguments": arguments, "id": id });
        let line = format!("{line}\n");
        self.stream
            .set_write_timeout(Some(self.reply_timeout))
            .map_err(|error| self.failed(error))?;
        let sent = match descriptor {
            None => self.stream.write_all(line.as_bytes()),
            Some(descriptor) => send(&self.stream, line.as_bytes(), descriptor),
        };
        sent.map_err(|error| self.failed(format_args!("{command}: {error}")))?;
        loop {
            let reply = self.line(deadline)?;
            let Some(mut reply) = reply else {
                return Err(self
                    .failed(format_args!("{command}: no reply within {:?}", self.reply_timeout)));
            };
            // A reply to a command that could not be parsed has no number.
            if reply.get("id").is_some_and(|found| found.as_u64() != Some(id)) {
                continue;
            }
            self.is_lost = false;
            if let Some(result) = reply.get_mut("return") {
                return Ok(result.take());
            }
            if reply.get("error").is_some() {
                let error = reply.pointer("/error/desc").and_then(Value::as_str);
                let error = error.unwrap_or("refused without a reason");
                return Err(self.failed(format_args!("{command}: {error}")));
            }
        }
    }

    /// QEMU's version.
    pub(crate) fn version(&mut self) -> Result<String, Failure> {
        Ok(emulator(&self.execute("query-version", json!({}))?))
    }

    /// Runs a command of the human monitor, and returns what it printed with plain line ends.
    pub(crate) fn human(&mut self, command_line: &str) -> Result<String, Failure> {
        let arguments = json!({ "command-line": command_line });
        let result = self.execute("human-monitor-command", arguments)?;
        let text = result.as_str();
        let text = text.ok_or_else(|| self.failed(format_args!("{command_line}: no text")))?;
        Ok(text.replace("\r\n", "\n"))
    }

    /// QEMU's clock at the latest event of this name since [`forget_events`](Self::forget_events).
    pub(crate) fn event(&self, name: &str) -> Option<Duration> {
        self.events.get(name).copied()
    }

    pub(crate) fn forget_events(&mut self) {
        self.events.clear();
    }

    /// The next line that is no event; `None` if none comes until `deadline`.
    fn line(&mut self, deadline: Instant) -> Result<Option<Value>, Failure> {
        loop {
            while let Some(line) = self.take_line() {
                let line: Value = serde_json::from_slice(&line)
                    .map_err(|error| self.failed(format_args!("not a JSON line: {error}")))?;
                let Some(name) = line.get("event").and_then(Value::as_str) else {
                    return Ok(Some(line));
                };
                let part = |name: &str| line.pointer(name).and_then(Value::as_u64).unwrap_or(0);
                let at = Duration::from_secs(part("/timestamp/seconds"))
                    + Duration::from_micros(part("/timestamp/microseconds").min(1_000_000));
                if self.events.len() < EVENTS || self.events.contains_key(name) {
                    self.events.insert(name.to_owned(), at);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left)).map_err(|error| self.failed(error))?;
            let mut buffer = [0; 1 << 14];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(self.failed("QEMU closed the connection")),
                Ok(count) => self.received.extend(buffer.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(self.failed(error)),
            }
            if self.received.len() > LONGEST_LINE {
                return Err(self.failed("a line of more than 16 MiB"));
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let found = self.received.iter().skip(self.searched).position(|byte| *byte == b'\n');
        let Some(end) = found else {
            self.searched = self.received.len();
            return None;
        };
        let line = self.received.drain(..=self.searched + end).collect();
        self.searched = 0;
        Some(line)
    }
}

/// QEMU's version, such as `7.2.22 (Debian ...)`.
fn emulator(version: &Value) -> String {
    let part = |name: &str| version.pointer(name).and_then(Value::as_u64).unwrap_or(0);
    let package = version.get("package").and_then(Value::as_str).unwrap_or_default();
    let numbers = [part("/qemu/major"), part("/qemu/minor"), part("/qemu/micro")];
    format!("{}.{}.{} {package}", numbers[0], numbers[1], numbers[2]).trim_end().to_owned()
}

/// Sends a line together with a descriptor.
fn send(stream: &UnixStream, line: &[u8], descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let slices = [IoSlice::new(line)];
    let sent = sendmsg(stream.as_fd(), &slices, &mut ancillary, SendFlags::NOSIGNAL)?;
    let rest = line.get(sent..).unwrap_or_default();
    (&*stream).write_all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    /// A peer that answers each line with the next of these texts.
    fn peer(greeting: &'static str, replies: &'static [&'static str]) -> Result<Qmp, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(greeting.as_bytes()).unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for reply in replies {
                if lines.next().is_none() {
                    return;
                }
                let _ = stream.write_all(reply.as_bytes());
            }
        });
        Qmp::connect(&path, Duration::from_secs(5))
    }

    const GREETING: &str = "{\"QMP\": {}}\r\n";
    const READY: &str = "{\"return\": {}, \"id\": 0}\r\n";

    #[test]
    fn replies_are_matched_across_events() {
        let stopped = "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 7, \"microseconds\": 5}}\n\
                       {\"return\": 9, \"id\": 77}\r\n{\"return\": {\"running\": true}, \"id\": 1}\r\n";
        let replies: &'static [&'static str] =
            vec![READY, stopped, "{\"error\": {\"desc\": \"no\"}, \"id\": 2}\n", "nonsense\n"]
                .leak();
        let mut qmp = peer(GREETING, replies).unwrap();
        assert_eq!(qmp.execute("query-status", json!({})).unwrap()["running"], true);
        assert_eq!(qmp.event("STOP"), Some(Duration::new(7, 5000)));
        qmp.forget_events();
        assert_eq!(qmp.event("STOP"), None);
        let error = qmp.execute("fly", json!({})).unwrap_err().to_string();
        assert!(error.contains("fly: no") && !qmp.is_lost(), "{error}");
        let error = qmp.execute("fly", json!({})).unwrap_err().to_string();
        assert!(error.contains("not a JSON line"), "{error}");
        let error = qmp.execute("fly", json!({})).unwrap_err().to_string();
        assert!(error.contains("fly: Broken pipe") || error.contains("closed"), "{error}");
        assert!(qmp.is_lost());
    }

    #[test]
    fn the_latest_event_of_a_name_counts_however_many_come() {
        let event = |name: &str, at: u64| {
            format!("{{\"event\": \"{name}\", \"timestamp\": {{\"seconds\": {at}}}}}\n")
        };
        let mut many: String = (0..2000).map(|at| event("STOP", at)).collect();
        many += &(event("RESUME", 3000) + "{\"return\": {}, \"id\": 1}\n");
        let replies: &'static [&'static str] = vec![READY, many.leak()].leak();
        let mut qmp = peer(GREETING, replies).unwrap();
        qmp.execute("query-status", json!({})).unwrap();
        assert_eq!(qmp.event("STOP"), Some(Duration::from_secs(1999)));
        assert_eq!(qmp.event("RESUME"), Some(Duration::from_secs(3000)));
    }

    #[test]
    fn the_human_monitor_s_text_has_plain_line_ends() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            let said = [GREETING, READY, "{\"return\": \"CPU#0\\r\\nRAX=0\\r\\n\", \"id\": 1}\r\n"];
            (&theirs).write_all(said.concat().as_bytes()).unwrap();
            let line = |text: String| serde_json::from_str::<Value>(&text).unwrap();
            [(); 2].map(|()| line(lines.next().unwrap().unwrap()))
        });
        let minute = Duration::from_secs(60);
        let mut qmp = Qmp::greet(Path::new("qmp"), ours, minute, minute).unwrap();
        assert_eq!(qmp.human("info registers -a").unwrap(), "CPU#0\nRAX=0\n");
        let [first, second] = peer.join().unwrap();
        assert_eq!(first["execute"], "qmp_capabilities");
        assert_eq!(second["arguments"]["command-line"], "info registers -a");
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = Qmp::greet(Path::new("qmp"), ours, minute, minute).unwrap_err().to_string();
        assert!(error.contains("closed"), "{error}");
        // The peer has gone.
        let error = qmp.execute("stop", json!({})).unwrap_err().to_string();
        assert!(error.contains("closed") || error.contains("stop: Broken pipe"), "{error}");
    }

    #[test]
    fn versions_are_written_with_their_package() {
        let version = json!({"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian"});
        assert_eq!(emulator(&version), "7.2.22 Debian");
    }

    #[test]
    fn other_protocols_are_refused() {
        for (greeting, expected) in [
            ("HTTP/1.1 400 Bad Request\r\n", "not a JSON line"),
            ("{\"hello\": 1}\r\n", "does not speak"),
        ] {
            let error = peer(greeting, &[READY]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let missing = Qmp::connect(Path::new("/nowhere"), Duration::ZERO).unwrap_err().to_string();
        assert!(missing.contains("hint: QEMU listens there"), "{missing}");
    }
}
