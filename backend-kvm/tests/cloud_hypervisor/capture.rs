//! A VM that is captured.

use super::double::{SHARED, SLOTS, STATE, config, exit, sender};
use super::{layout, memory};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_kvm::cloud_hypervisor::{Capture, capture};
use kaleidoscope_kvm::{Error, ErrorKind};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

/// The variable that makes a test's process a sender: the socket.
const SENDER: &str = "KALEIDOSCOPE_TEST_SENDER";

const LONG: Duration = Duration::from_secs(60);

/// What the other process does.
#[test]
fn sender() {
    let Ok(socket) = std::env::var(SENDER) else { return };
    std::process::exit(sender::run(UnixStream::connect(socket).unwrap(), "-"));
}

/// Captures what a sender on a thread sends; returns its exit status, too.
fn captured(orders: &'static str, timeout: Duration) -> (Result<Capture, Error>, JoinHandle<i32>) {
    let (here, there) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || sender::run(there, orders));
    (capture(here, &tempfile::tempfile().unwrap(), timeout), thread)
}

#[test]
fn the_image_is_the_memory_before_the_vm_runs_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "capture::sender", "--nocapture"]).env(SENDER, &socket);
    let mut child = command.spawn().unwrap();
    let path = folder.path().join("memory.bin");
    // What was there before is not in the image.
    std::fs::write(&path, vec![0xee; 8 << 20]).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let vm = capture(listener.accept().unwrap().0, &file, LONG).unwrap();
    assert!(vm.was_running());
    assert_eq!((vm.config(), vm.state()), (&config(&SLOTS, SHARED)[..], STATE));
    assert_eq!(vm.layout(), &layout());
    let slots: Vec<_> = vm
        .slots()
        .iter()
        .map(|slot| (slot.slot, slot.gpa.0, slot.bytes, slot.file_offset))
        .collect();
    assert_eq!(slots, [SLOTS[1], SLOTS[2], SLOTS[0]], "by address");
    vm.acknowledge().unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(exit::GOOD), None));
    let image = std::fs::read(&path).unwrap();
    assert!(image == memory().bytes(), "the VM's later writes are not in it");
    // A seventh of the pages are zeros.
    let taken = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(taken < memory().layout().bytes() * 9 / 10, "{taken} bytes");
}

#[test]
fn a_paused_vm_is_told_apart() {
    let (vm, thread) = captured("paused", LONG);
    let vm = vm.unwrap();
    assert!(!vm.was_running());
    vm.acknowledge().unwrap();
    assert_eq!(thread.join().unwrap(), exit::GOOD);
}

#[test]
fn a_capture_that_is_not_acknowledged_leaves_the_vm_to_its_vmm() {
    let (vm, thread) = captured("-", LONG);
    drop(vm.unwrap());
    assert_eq!(thread.join().unwrap(), exit::FAILED);
}

#[test]
fn wrong_senders_are_told_what_is_wrong() {
    use ErrorKind::{Ended, InvalidInput, Unsupported};
    for (orders, kind, text) in [
        ("later", Unsupported, "version 1"),
        ("unknown", Unsupported, "command 99"),
        ("memory", Unsupported, "local=on"),
        ("none", Unsupported, "local=on"),
        ("early", InvalidInput, "State came"),
        ("twice", InvalidInput, "came twice"),
        ("extra", InvalidInput, "slot 9 is not configured"),
        ("fewer", InvalidInput, "without a file"),
        ("short", InvalidInput, "are its memory"),
        ("pipe", InvalidInput, "not in memory"),
        ("disk", InvalidInput, "not in memory"),
        ("two", InvalidInput, "2 descriptors"),
        ("bare", InvalidInput, "0 descriptors"),
        ("fd=abandons", Ended, "gave up"),
        ("complete=abandons", Ended, "gave up"),
    ] {
        let (vm, thread) = captured(orders, LONG);
        let error = vm.map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{orders}: {error}");
        assert!(error.to_string().contains(text), "{orders}: {error}");
        let status = thread.join().unwrap();
        // Where contents were not read, the connection is reset, and the answer is lost.
        let is_reset = ["memory", "early"].contains(&orders) && status == exit::CLOSED;
        assert!(status == exit::FAILED || is_reset, "{orders}: {status}");
    }
}

#[test]
fn senders_that_hang_or_die_at_any_step_are_errors() {
    const HANG: [&str; 5] =
        ["start=hangs", "fd=hangs", "config=hangs", "state=hangs", "complete=hangs"];
    const DIE: [&str; 5] = ["start=dies", "fd=dies", "config=dies", "state=dies", "complete=dies"];
    for orders in HANG {
        let (vm, thread) = captured(orders, Duration::from_millis(300));
        let error = vm.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{orders}: {error}");
        assert_eq!(thread.join().unwrap(), exit::FAILED, "{orders}: it was told");
    }
    for orders in DIE {
        let (vm, thread) = captured(orders, LONG);
        let error = vm.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Ended, "{orders}: {error}");
        assert_eq!(thread.join().unwrap(), exit::DIED);
    }
}
