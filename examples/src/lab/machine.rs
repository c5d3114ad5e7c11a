//! A QEMU process: starts, controls and pauses it, and kills it on drop.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::command::QEMU;
use super::config::{Config, RAM};
use super::control::{FromGuest, FromHost};
use super::error::{Error, Result};
use super::layout::Layout;
use crate::failure::Failure;
use crate::interrupt::{Armed, Scratch, child};
use crate::lines::last_lines;
use crate::qemu::qmp::Qmp;
use crate::socket::connect_within;

/// How long QEMU may take to answer on its sockets.
const QMP_TIMEOUT: Duration = Duration::from_secs(60);

/// Number of lines of the guest's console that errors quote.
const TAIL_LINES: usize = 25;

/// A running guest.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: KillOnDrop,
    qmp: Qmp,
    control: UnixStream,
    received: Vec<u8>,
    console: PathBuf,
    timeout: Duration,
    ram_bytes: u64,
    /// The folder of the sockets. It is not next to the images, because a Unix socket's path must
    /// be short.
    _sockets: Scratch,
}

impl Machine {
    /// Starts QEMU and connects to it.
    ///
    /// # Errors
    /// If QEMU is missing, ends at once, or does not open its sockets in time.
    pub(crate) fn start(config: &Config) -> Result<Self> {
        let sockets = Scratch::new("kaleidoscope-lab-")
            .map_err(Error::io("create", Path::new("socket folder")))?;
        let (qmp, control) = (sockets.path().join("qmp"), sockets.path().join("control"));
        // QEMU ends when this process does, even by SIGKILL.
        let mut command = QEMU.command();
        command.args(config.arguments(&qmp, &control)).stdout(Stdio::null()).stderr(Stdio::piped());
        let (qemu, armed) =
            child::spawn(&mut command).map_err(|source| QEMU.not_started(source))?;
        let mut qemu = KillOnDrop(qemu, Some(armed));
        let control = connect(&mut qemu.0, &control)?;
        let stream = connect(&mut qemu.0, &qmp)?;
        control
            .set_read_timeout(Some(Duration::from_millis(100)))
            .map_err(Error::io("configure", &config.ram))?;
        // QEMU opens its sockets before it checks most of its arguments, so an invalid argument
        // may show up here.
        let qmp = Qmp::greet(&qmp, stream, QMP_TIMEOUT, QMP_TIMEOUT)
            .map_err(|failure| exit_error(&mut qemu.0).unwrap_or_else(|| qmp_error(&failure)))?;
        Ok(Self {
            qemu,
            qmp,
            control,
            received: Vec::new(),
            console: config.console.clone(),
            timeout: config.timeout,
            ram_bytes: config.memory_mib << 20,
            _sockets: sockets,
        })
    }

    /// Waits until the guest sends `expected`.
    ///
    /// # Errors
    /// [`Error::Agent`] if the guest reports a failure. [`Error::Guest`], with the end of its
    /// console, if it ends, sends another message, or takes longer than the configured timeout.
    pub(crate) fn wait_for(&mut self, expected: &FromGuest) -> Result<()> {
        let begin = Instant::now();
        loop {
            match self.receive(begin)? {
                Some(message) if message == *expected => return Ok(()),
                Some(message) => {
                    let what = format!("the guest sent `{message}` instead of `{expected}`");
                    return Err(self.guest_error(what, begin));
                }
                None if begin.elapsed() > self.timeout => {
                    let what = format!("the guest did not send `{expected}` in time");
                    return Err(self.guest_error(what, begin));
                }
                None => {}
            }
        }
    }

    /// The guest's next message, if one arrives within 100 ms. `begin` is when the wait began.
    ///
    /// # Errors
    /// [`Error::Agent`] if the guest reports a failure; [`Error::Guest`] if QEMU ended.
    pub(crate) fn receive(&mut self, begin: Instant) -> Result<Option<FromGuest>> {
        let mut buffer = [0; 256];
        match self.control.read(&mut buffer) {
            Ok(0) => {
                // End of file: QEMU is exiting.
                sleep(Duration::from_millis(50));
                if let Ok(Some(status)) = self.qemu.0.try_wait() {
                    return Err(self.guest_error(format!("QEMU ended ({status})"), begin));
                }
            }
            Ok(count) => self.received.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(Error::Qmp(format!("control port: {error}"))),
        }
        match self.next_message() {
            Some(FromGuest::Failed(why)) => Err(Error::Agent(why)),
            message => Ok(message),
        }
    }

    /// Sends a message to the guest.
    ///
    /// # Errors
    /// If the serial port is closed.
    pub(crate) fn send(&mut self, message: &FromHost) -> Result<()> {
        self.control
            .write_all(format!("{message}\n").as_bytes())
            .map_err(|error| Error::Qmp(format!("control port: {error}")))
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.qmp.execute(command, arguments).map_err(|failure| qmp_error(&failure))
    }

    fn human(&mut self, command: &str) -> Result<String> {
        self.qmp.human(command).map_err(|failure| qmp_error(&failure))
    }

    /// Stops all vCPUs.
    pub(crate) fn pause(&mut self) -> Result<()> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Resumes all vCPUs.
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.execute("cont", json!({})).map(drop)
    }

    /// The registers of all vCPUs, as text.
    pub(crate) fn registers(&mut self) -> Result<String> {
        self.human("info registers -a")
    }

    /// The layout of the guest's RAM.
    pub(crate) fn layout(&mut self) -> Result<Layout> {
        Layout::from_mtree(&self.human("info mtree -f")?, RAM, self.ram_bytes)
    }

    /// Saves the state of the paused guest's vCPUs and devices, without its RAM, into `file`.
    ///
    /// The RAM file is shared memory, which the capability `x-ignore-shared` leaves out.
    ///
    /// # Errors
    /// If QEMU refuses or fails.
    pub(crate) fn save_devices(&mut self, file: &Path) -> Result<()> {
        self.ignore_shared()?;
        let uri = format!("exec:cat > {}", quote(file));
        self.execute("migrate", json!({ "uri": uri }))?;
        self.wait_for_migration()
    }

    /// Loads the state that [`Machine::save_devices`] saved into a machine that was started as a
    /// clone. The machine stays paused.
    ///
    /// # Errors
    /// If QEMU refuses or fails, for example because its version differs.
    pub(crate) fn load_devices(&mut self, file: &Path) -> Result<()> {
        self.ignore_shared()?;
        let uri = format!("exec:cat {}", quote(file));
        self.execute("migrate-incoming", json!({ "uri": uri }))?;
        self.wait_for_migration().map_err(|error| exit_error(&mut self.qemu.0).unwrap_or(error))
    }

    fn ignore_shared(&mut self) -> Result<()> {
        let capability = json!({ "capability": "x-ignore-shared", "state": true });
        self.execute("migrate-set-capabilities", json!({ "capabilities": [capability] })).map(drop)
    }

    fn wait_for_migration(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let answer = self.execute("query-migrate", json!({}))?;
            match answer.get("status").and_then(Value::as_str) {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(Error::Qmp(format!("migration failed: {answer}")));
                }
                _ if begin.elapsed() > self.timeout => {
                    return Err(Error::Qmp(format!("migration does not end: {answer}")));
                }
                _ => sleep(Duration::from_millis(5)),
            }
        }
    }

    /// The host thread ID of each vCPU, by vCPU index.
    ///
    /// # Errors
    /// If QEMU's answer cannot be understood.
    pub(crate) fn vcpu_threads(&mut self) -> Result<Vec<u32>> {
        let answer = self.execute("query-cpus-fast", json!({}))?;
        let number = |vcpu: &Value, key: &str| u32::try_from(vcpu.get(key)?.as_u64()?).ok();
        let mut threads: Vec<_> = answer
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|vcpu| Some((number(vcpu, "cpu-index")?, number(vcpu, "thread-id")?)))
            .collect();
        threads.sort_unstable();
        // All indices must be present, so that a vCPU's index is its position.
        if threads.is_empty() || !(0..).zip(&threads).all(|(place, (index, _))| place == *index) {
            return Err(Error::Qmp(format!("query-cpus-fast: cannot read {answer}")));
        }
        Ok(threads.into_iter().map(|(_, thread)| thread).collect())
    }

    /// QEMU's PID.
    pub(crate) fn pid(&self) -> u32 {
        self.qemu.0.id()
    }

    /// Inflates the balloon until the guest has `target` bytes.
    ///
    /// # Errors
    /// If the guest does not reach the target within the configured timeout.
    pub(crate) fn balloon(&mut self, target: u64) -> Result<()> {
        self.execute("balloon", json!({ "value": target }))?;
        let begin = Instant::now();
        loop {
            let answer = self.execute("query-balloon", json!({}))?;
            if answer.get("actual").and_then(Value::as_u64) == Some(target) {
                return Ok(());
            }
            if begin.elapsed() > self.timeout {
                let what = format!("the balloon did not reach {target} bytes: {answer}");
                return Err(self.guest_error(what, begin));
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Ends QEMU cleanly, so that its disks are complete.
    ///
    /// # Errors
    /// If QEMU refuses or does not end in time.
    pub(crate) fn quit(mut self) -> Result<()> {
        self.execute("quit", json!({}))?;
        let begin = Instant::now();
        while begin.elapsed() < QMP_TIMEOUT {
            if let Ok(Some(_)) = self.qemu.0.try_wait() {
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        Err(Error::Qmp("QEMU does not quit".to_owned()))
    }

    fn next_message(&mut self) -> Option<FromGuest> {
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            if let Some(message) = FromGuest::parse(&String::from_utf8_lossy(&line)) {
                return Some(message);
            }
        }
        None
    }

    /// An error with the end of the guest's console. `begin` is when the wait began.
    pub(crate) fn guest_error(&self, what: String, begin: Instant) -> Error {
        let console = std::fs::read(&self.console).unwrap_or_default();
        let tail = last_lines(&String::from_utf8_lossy(&console), TAIL_LINES);
        Error::Guest { what, after: begin.elapsed(), tail }
    }
}

/// A child that is killed on drop.
#[derive(Debug)]
struct KillOnDrop(Child, Option<Armed>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
        if let Some(armed) = self.1.take() {
            armed.disarm();
        }
    }
}

/// QEMU's version, like `QEMU emulator version 7.2.22 (...)`.
///
/// # Errors
/// If QEMU is not installed.
pub(crate) fn qemu_version() -> Result<String> {
    let output = QEMU.run(QEMU.command().arg("--version"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Connects to a socket that QEMU is about to open.
fn connect(qemu: &mut Child, path: &Path) -> Result<UnixStream> {
    let mut runs = || !matches!(qemu.try_wait(), Ok(Some(_)));
    connect_within(path, QMP_TIMEOUT, &mut runs).map_err(|source| {
        let failed = Error::Io { doing: "connect to", path: path.to_owned(), source };
        exit_error(qemu).unwrap_or(failed)
    })
}

fn qmp_error(failure: &Failure) -> Error {
    Error::Qmp(failure.to_string())
}

/// Waits briefly for QEMU to end, and returns its standard error as an error. `None` if QEMU runs.
fn exit_error(qemu: &mut Child) -> Option<Error> {
    sleep(Duration::from_millis(200));
    let status = qemu.try_wait().ok().flatten()?;
    let mut stderr = String::new();
    if let Some(pipe) = &mut qemu.stderr {
        let _ = pipe.read_to_string(&mut stderr);
    }
    let command = QEMU.program.to_owned();
    Some(Error::Program { command, status, stderr: last_lines(&stderr, 10), hint: "" })
}

/// Quotes a path for the shell.
fn quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word_of_the_shell() {
        let path = Path::new("/tmp/it's $HOME/a file");
        let mut shell = std::process::Command::new("sh");
        let output = shell.args(["-c", &format!("printf %s {}", quote(path))]).output().unwrap();
        assert_eq!(output.stdout, path.display().to_string().as_bytes());
    }
}
