//! One running QEMU: started, watched, paused, and killed when dropped.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use super::command::{QEMU, SETPRIV, tail};
use super::control::{FromGuest, FromHost};
use super::error::{Error, Result};
use super::layout::Layout;
use super::qmp::Qmp;

/// The name of the RAM's memory region in QEMU's `info mtree`.
const RAM: &str = "guest-ram";

/// How long QEMU may take to answer on its sockets.
const QMP_TIMEOUT: Duration = Duration::from_secs(60);

/// Lines of the guest's console that an error quotes.
const TAIL_LINES: usize = 25;

/// A raw disk image and the serial number by which the guest knows it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// virtio-blk serial number.
    pub(crate) serial: &'static str,
    /// The image.
    pub(crate) path: PathBuf,
}

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// QEMU machine type.
    pub(crate) machine: &'static str,
    /// QEMU CPU model with features.
    pub(crate) cpu: String,
    /// Number of vCPUs.
    pub(crate) cpus: u32,
    /// RAM in MiB.
    pub(crate) memory_mib: u64,
    /// Kernel image.
    pub(crate) kernel: PathBuf,
    /// Initramfs.
    pub(crate) initramfs: PathBuf,
    /// Kernel command line.
    pub(crate) command_line: String,
    /// Disks in order.
    pub(crate) disks: Vec<Disk>,
    /// Whether to plug a balloon.
    pub(crate) balloon: bool,
    /// The file that is the guest's RAM.
    pub(crate) ram: PathBuf,
    /// The file that takes the guest's console.
    pub(crate) console: PathBuf,
    /// How long to wait for each of the guest's words.
    pub(crate) patience: Duration,
}

/// A running guest.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: KillOnDrop,
    qmp: Qmp<UnixStream>,
    control: UnixStream,
    heard: Vec<u8>,
    console: PathBuf,
    patience: Duration,
    ram_bytes: u64,
    /// Holds the sockets; their paths must be short, so that they are not beside the images.
    _sockets: tempfile::TempDir,
}

impl Machine {
    /// Starts QEMU and connects to it.
    ///
    /// # Errors
    /// If QEMU is missing, ends at once, or does not open its sockets in time.
    pub(crate) fn start(config: &Config) -> Result<Self> {
        let sockets = tempfile::Builder::new()
            .prefix("kaleidoscope-lab-")
            .tempdir()
            .map_err(Error::io("create", Path::new("socket folder")))?;
        let (qmp, control) = (sockets.path().join("qmp"), sockets.path().join("control"));
        // QEMU ends with this process, whatever ends it.
        let qemu = SETPRIV
            .command()
            .args(["--pdeathsig", "KILL", QEMU.program])
            .args(arguments(config, &qmp, &control))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| SETPRIV.not_started(source))?;
        let mut qemu = KillOnDrop(qemu);
        let control = connect(&mut qemu.0, &control)?;
        let qmp = connect(&mut qemu.0, &qmp)?;
        qmp.set_read_timeout(Some(QMP_TIMEOUT)).map_err(Error::io("configure", &config.ram))?;
        control
            .set_read_timeout(Some(Duration::from_millis(100)))
            .map_err(Error::io("configure", &config.ram))?;
        // QEMU opens its sockets before it looks at most of its arguments.
        let qmp = Qmp::connect(qmp).map_err(|error| said_by(&mut qemu.0).unwrap_or(error))?;
        Ok(Self {
            qemu,
            qmp,
            control,
            heard: Vec::new(),
            console: config.console.clone(),
            patience: config.patience,
            ram_bytes: config.memory_mib << 20,
            _sockets: sockets,
        })
    }

    /// Waits until the guest says `expected`.
    ///
    /// # Errors
    /// [`Error::Agent`] if it says that it failed; [`Error::Guest`], with the end of its console,
    /// if it ends or takes longer than the configured patience.
    pub(crate) fn wait_for(&mut self, expected: &FromGuest) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(word) = self.next_word() {
                if word == *expected {
                    return Ok(());
                }
                if let FromGuest::Failed(why) = word {
                    return Err(Error::Agent(why));
                }
                let what = format!("the guest said `{word}` instead of `{expected}`");
                return Err(self.guest_error(what, begin));
            }
            if begin.elapsed() > self.patience {
                let what = format!("the guest did not say `{expected}` in time");
                return Err(self.guest_error(what, begin));
            }
            if let Ok(Some(status)) = self.qemu.0.try_wait() {
                let what = format!("QEMU ended ({status}) before the guest said `{expected}`");
                return Err(self.guest_error(what, begin));
            }
            let mut buffer = [0; 256];
            match self.control.read(&mut buffer) {
                // The serial port is gone with QEMU; its exit is seen in the next turn.
                Ok(0) => sleep(Duration::from_millis(50)),
                Ok(count) => self.heard.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(Error::Qmp(format!("control port: {error}"))),
            }
        }
    }

    /// Tells the guest something.
    ///
    /// # Errors
    /// If the serial port is closed.
    pub(crate) fn tell(&mut self, word: FromHost) -> Result<()> {
        self.control
            .write_all(format!("{word}\n").as_bytes())
            .map_err(|error| Error::Qmp(format!("control port: {error}")))
    }

    /// Stops all vCPUs.
    pub(crate) fn pause(&mut self) -> Result<()> {
        self.qmp.execute("stop", json!({})).map(drop)
    }

    /// Lets them run again.
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.qmp.execute("cont", json!({})).map(drop)
    }

    /// The registers of all vCPUs, as text.
    pub(crate) fn registers(&mut self) -> Result<String> {
        self.qmp.human("info registers -a")
    }

    /// Where the RAM lies.
    pub(crate) fn layout(&mut self) -> Result<Layout> {
        Layout::from_mtree(&self.qmp.human("info mtree -f")?, RAM, self.ram_bytes)
    }

    /// Takes memory from the guest until it has `target` bytes.
    ///
    /// # Errors
    /// If the guest gives back nothing for the configured patience.
    pub(crate) fn balloon(&mut self, target: u64) -> Result<()> {
        self.qmp.execute("balloon", json!({ "value": target }))?;
        let begin = Instant::now();
        loop {
            let answer = self.qmp.execute("query-balloon", json!({}))?;
            if answer.get("actual").and_then(serde_json::Value::as_u64) == Some(target) {
                return Ok(());
            }
            if begin.elapsed() > self.patience {
                let what = format!("the balloon did not reach {target} bytes: {answer}");
                return Err(self.guest_error(what, begin));
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Ends QEMU in order, so that its disks are complete.
    ///
    /// # Errors
    /// If it does not end.
    pub(crate) fn quit(mut self) -> Result<()> {
        self.qmp.execute("quit", json!({}))?;
        let begin = Instant::now();
        while begin.elapsed() < QMP_TIMEOUT {
            if let Ok(Some(_)) = self.qemu.0.try_wait() {
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        Err(Error::Qmp("QEMU does not quit".to_owned()))
    }

    fn next_word(&mut self) -> Option<FromGuest> {
        while let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            if let Some(word) = FromGuest::parse(&String::from_utf8_lossy(&line)) {
                return Some(word);
            }
        }
        None
    }

    fn guest_error(&self, what: String, begin: Instant) -> Error {
        let console = std::fs::read(&self.console).unwrap_or_default();
        let tail = tail(&String::from_utf8_lossy(&console), TAIL_LINES);
        Error::Guest { what, after: begin.elapsed(), tail }
    }
}

/// A child that does not outlive this value.
#[derive(Debug)]
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Which QEMU this is, like `QEMU emulator version 7.2.22 (...)`.
///
/// # Errors
/// If it is not installed.
pub(crate) fn qemu_version() -> Result<String> {
    let output = QEMU.run(QEMU.command().arg("--version"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Connects to a socket that QEMU is about to open.
fn connect(qemu: &mut Child, path: &Path) -> Result<UnixStream> {
    let begin = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if begin.elapsed() > QMP_TIMEOUT => {
                return Err(Error::Io {
                    doing: "connect to",
                    path: path.to_owned(),
                    source: error,
                });
            }
            Err(_) => sleep(Duration::from_millis(10)),
        }
        if let Ok(Some(_)) = qemu.try_wait()
            && let Some(error) = said_by(qemu)
        {
            return Err(error);
        }
    }
}

/// Waits a moment for QEMU to end, and makes an error of its last words.
fn said_by(qemu: &mut Child) -> Option<Error> {
    sleep(Duration::from_millis(200));
    let status = qemu.try_wait().ok().flatten()?;
    let mut stderr = String::new();
    if let Some(pipe) = &mut qemu.stderr {
        let _ = pipe.read_to_string(&mut stderr);
    }
    let command = QEMU.program.to_owned();
    Some(Error::Program { command, status, stderr: tail(&stderr, 10), hint: "" })
}

fn arguments(config: &Config, qmp: &Path, control: &Path) -> Vec<String> {
    let Config { machine, cpu, cpus, memory_mib, .. } = config;
    let (ram, console) = (escape(&config.ram), config.console.display());
    let (qmp, control) = (qmp.display(), control.display());
    let mut words: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            .map(str::to_owned)
            .to_vec();
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("-machine", format!("{machine},memory-backend={RAM}"));
    option("-accel", "tcg,thread=multi".to_owned());
    option("-cpu", cpu.clone());
    option("-smp", cpus.to_string());
    option("-m", format!("{memory_mib}M"));
    option(
        "-object",
        format!("memory-backend-file,id={RAM},size={memory_mib}M,mem-path={ram},share=on"),
    );
    option("-kernel", config.kernel.display().to_string());
    option("-initrd", config.initramfs.display().to_string());
    option("-append", config.command_line.clone());
    option("-serial", format!("file:{console}"));
    option("-chardev", format!("socket,id=control,path={control},server=on,wait=off"));
    option("-serial", "chardev:control".to_owned());
    option("-qmp", format!("unix:{qmp},server=on,wait=off"));
    for Disk { serial, path } in &config.disks {
        let path = escape(path);
        option("-drive", format!("file={path},if=none,id={serial},format=raw,cache=unsafe"));
        option("-device", format!("virtio-blk-pci,drive={serial},serial={serial}"));
    }
    if config.balloon {
        option("-device", "virtio-balloon-pci".to_owned());
    }
    words
}

/// A comma in a value of QEMU's option lists is written twice.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
