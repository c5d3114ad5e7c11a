//! `kaleidoscope capture cloud-hypervisor` and `kaleidoscope serve cloud-hypervisor`, with
//! stand-ins for the VMM: a VM is captured, and clones of it see its bytes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    dead_code,
    unreachable_pub,
    reason = "helpers of tests, which clippy does not see as tests"
)]

#[path = "../../../backend-kvm/tests/cloud_hypervisor/double/mod.rs"]
mod double;

use double::{PAGE, SHARED, SLOTS, STATE, config, exit, page, receiver::beside, sender};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use userfaultfd::UffdBuilder;

/// After so long, something hangs.
const WATCHDOG: Duration = Duration::from_secs(120);

/// The variable that makes a test's process a receiver: its orders.
const RECEIVER: &str = "KALEIDOSCOPE_TEST_RECEIVER";

/// What the other process does.
#[test]
fn receiver() {
    let Ok(orders) = std::env::var(RECEIVER) else { return };
    double::receiver::run(&orders);
}

/// Whether memory files can be filled here.
fn can_watch() -> bool {
    let made = UffdBuilder::new().user_mode_only(false).create();
    if let Err(error) = &made {
        println!("******** SKIPPED: no userfaultfd here ({error}) ********");
    }
    made.is_ok()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < WATCHDOG, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connects as soon as the command listens.
fn connected(socket: &Path) -> UnixStream {
    let mut stream = None;
    wait_until("the command listens", || {
        stream = UnixStream::connect(socket).ok();
        stream.is_some()
    });
    stream.unwrap()
}

/// A process that is killed on drop.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn status(&mut self) -> std::process::ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command, and the events that it prints.
struct Running {
    process: Process,
    events: Receiver<Value>,
}

fn kaleidoscope(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kaleidoscope"));
    command.args(words).stdin(Stdio::null());
    command
}

impl Running {
    fn start(words: &[&str]) -> Self {
        let mut child = kaleidoscope(words).arg("--json").stdout(Stdio::piped()).spawn().unwrap();
        let (sender, events) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { process: Process(child), events }
    }

    /// The next event, which has to be of this kind.
    fn event(&self, kind: &str) -> Value {
        let event = self.events.recv_timeout(WATCHDOG).expect("the command says nothing");
        assert_eq!(event["event"], kind, "{event}");
        event
    }
}

/// A captured VM, and a place for sockets.
struct Captured {
    folder: TempDir,
}

impl Captured {
    /// As the command writes it.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("capture.sock");
        let vm = folder.path().join("vm");
        let mut capture = Running::start(&[
            "capture",
            "cloud-hypervisor",
            "--socket",
            socket.to_str().unwrap(),
            "-o",
            vm.to_str().unwrap(),
        ]);
        assert_eq!(sender::run(connected(&socket), "-"), exit::GOOD);
        let captured = capture.event("captured");
        assert!(capture.process.status().success());
        assert_eq!(captured["memory_bytes"], 7 << 20);
        assert_eq!((&captured["slots"], &captured["was_running"]), (&3.into(), &true.into()));
        assert!(!socket.exists());
        Self { folder }
    }

    fn vm(&self) -> PathBuf {
        self.folder.path().join("vm")
    }

    fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.vm().join(name)).unwrap()
    }

    /// A clone with these arguments, in a VMM with these orders.
    fn serve(&self, orders: &str, arguments: &[&str]) -> Clone {
        let socket = self.folder.path().join("clone.sock");
        let _ = fs::remove_file(&socket);
        let _ = fs::remove_file(beside(&socket, "go"));
        let mut vmm = Command::new(std::env::current_exe().unwrap());
        vmm.args(["--exact", "receiver", "--nocapture"]);
        vmm.env(RECEIVER, format!("{} {orders}", socket.display()));
        let vmm = Process(vmm.spawn().unwrap());
        let vm = self.vm();
        let mut words = vec!["serve", "cloud-hypervisor", vm.to_str().unwrap()];
        words.extend(["--socket", socket.to_str().unwrap()]);
        words.extend(arguments);
        let command = Running::start(&words);
        command.event("serving");
        Clone { vmm, command, socket }
    }
}

struct Clone {
    vmm: Process,
    command: Running,
    socket: PathBuf,
}

impl Clone {
    /// Lets the guest touch its memory.
    fn go(&self) {
        fs::write(beside(&self.socket, "go"), "").unwrap();
    }
}

#[test]
fn a_captured_vm_has_all_that_it_consists_of() {
    let captured = Captured::new();
    let ram = captured.file("ram.bin");
    let mut slots = SLOTS;
    slots.sort_by_key(|slot| slot.1);
    let pages = slots.iter().flat_map(|(_, gpa, size, _)| (*gpa..gpa + size).step_by(PAGE));
    assert!(pages.clone().count() * PAGE == ram.len());
    for (found, gpa) in ram.as_chunks::<PAGE>().0.iter().zip(pages) {
        assert!(*found == page(gpa), "{gpa:#x}");
    }
    assert_eq!(captured.file("config.json"), config(&SLOTS, SHARED));
    assert_eq!(captured.file("state.json"), STATE);
    let layout = String::from_utf8(captured.file("layout.txt")).unwrap();
    assert!(layout.contains("0x500000 0x100000000 0x200000"), "{layout}");
}

#[test]
fn a_capture_that_fails_leaves_the_vm_and_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("capture.sock");
    let vm = folder.path().join("vm");
    for (orders, text) in
        [("none", "local=on"), ("short", "are its memory"), ("state=dies", "closed")]
    {
        let words = ["capture", "cloud-hypervisor", "--socket", socket.to_str().unwrap(), "-o"];
        let mut command = kaleidoscope(&words);
        command.arg(&vm).stderr(Stdio::piped());
        let mut capture = Process(command.spawn().unwrap());
        let status = sender::run(connected(&socket), orders);
        assert!([exit::FAILED, exit::DIED].contains(&status), "{orders}: {status}");
        let mut said = String::new();
        capture.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(capture.status().code(), Some(2), "{said}");
        assert!(said.contains(text), "{orders}: {said}");
        assert!(!vm.exists(), "{orders}");
    }
}

#[test]
fn clones_of_a_captured_vm_see_its_bytes() {
    if !can_watch() {
        return;
    }
    let captured = Captured::new();
    for (orders, arguments) in [
        ("sweeps", &[][..]),
        ("minor", &["--policy", "demand"]),
        ("sweeps minor", &["--policy", "blind-aligned-16"]),
        ("paused", &["--paused"]),
    ] {
        let mut clone = captured.serve(orders, arguments);
        let started = clone.command.event("started");
        assert_eq!(started["process"], clone.vmm.0.id());
        let ended = clone.command.event("ended");
        assert_eq!(ended["error"], Value::Null, "{orders}");
        if orders.contains("minor") {
            assert_eq!(ended["whole"], true, "{orders}");
        }
        assert!(ended["resident_frames"].as_u64().unwrap() > 0);
        assert!(clone.command.process.status().success(), "{orders}");
        assert_eq!(clone.vmm.status().code(), Some(exit::GOOD), "{orders}");
    }
}

#[test]
fn a_vm_that_needs_its_command_outlives_one_signal_and_not_its_death() {
    if !can_watch() {
        return;
    }
    let captured = Captured::new();
    // A first signal waits for the VM.
    let mut clone = captured.serve("waits", &[]);
    clone.command.event("started");
    clone.command.process.signal(Signal::TERM);
    clone.command.event("waiting");
    clone.go();
    clone.command.event("ended");
    assert!(clone.command.process.status().success());
    assert_eq!(clone.vmm.status().code(), Some(exit::GOOD));

    // A second SIGINT ends its VMM.
    let mut clone = captured.serve("waits", &[]);
    clone.command.event("started");
    clone.command.process.signal(Signal::INT);
    clone.command.event("waiting");
    clone.command.process.signal(Signal::INT);
    let ended = clone.command.event("ended");
    assert!(ended["error"].as_str().unwrap().contains("stopped"), "{ended}");
    assert_eq!(clone.command.process.status().code(), Some(2));
    assert_eq!(clone.vmm.status().signal(), Some(9));

    // Nothing is left to serve it.
    let mut clone = captured.serve("waits", &[]);
    clone.command.event("started");
    clone.command.process.signal(Signal::KILL);
    let status = clone.vmm.status();
    // Whichever comes first: the guard's signal, or the closed connection.
    assert!(status.signal() == Some(9) || status.code() == Some(exit::FAILED), "{status}");
}

/// What the command says when it fails.
fn said(vm: &Path, socket: &Path) -> String {
    let words = ["serve", "cloud-hypervisor", vm.to_str().unwrap(), "--timeout", "0.2"];
    let output = kaleidoscope(&words).arg("--socket").arg(socket).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_cannot_be_served_is_an_error_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let error = said(folder.path(), &socket);
    assert!(error.contains("config.json") && error.contains("hint:"), "{error}");
    if !can_watch() {
        return;
    }
    let captured = Captured::new();
    let error = said(&captured.vm(), &socket);
    assert!(error.contains("memory_mode=postcopy"), "{error}");
    let other = config(&SLOTS[..2], SHARED);
    fs::write(captured.vm().join("config.json"), other).unwrap();
    let error = said(&captured.vm(), &socket);
    assert!(error.contains("another snapshot's"), "{error}");
}
