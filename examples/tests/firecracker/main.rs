//! `kaleidoscope serve firecracker` beside a process that does what Firecracker does.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "helpers of a test fail by panicking"
)]
#![expect(unsafe_code, reason = "the VMM's process maps memory and reads it")]

mod double;
mod handler;
mod systemd;
mod takeover;

use double::Vmm;
use handler::Handler;
use kaleidoscope_core::color::Color;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// A snapshot: `memory` and `layout.txt`, with a hole in its RAM.
struct Snapshot {
    folder: TempDir,
    regions: Vec<u64>,
    free_frames: usize,
}

impl Snapshot {
    /// A guest of this many MiB whose free frames hold bytes.
    fn new(mib: u64) -> Self {
        let builder = GuestBuilder::new(KernelStyle::V6_12).seed(8).ram_bytes(mib << 20);
        let mut guest = builder.pci_hole_at(16 << 20).build().unwrap();
        let frames: Vec<_> = guest.truth.layout().iter().collect();
        let mut free_frames = 0;
        for (frame, gfn) in frames {
            if guest.truth.color(frame) == Color::Free {
                guest.memory.write(gfn.gpa(), &[0xa5; 4096]).unwrap();
                free_frames += 1;
            }
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("memory"), guest.memory.bytes()).unwrap();
        let (mut layout, mut regions) = (String::new(), Vec::new());
        for region in guest.truth.layout().regions() {
            let (offset, bytes) = (region.first_index.0 * 4096, u64::from(region.frames) * 4096);
            writeln!(layout, "{offset:#x} {:#x} {bytes:#x}", region.start.gpa().0).unwrap();
            regions.push(bytes);
        }
        fs::write(folder.path().join("layout.txt"), layout).unwrap();
        Self { folder, regions, free_frames }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&self, arguments: &[&str]) -> Handler {
        let layout = self.path("layout.txt").display().to_string();
        let all: Vec<_> = ["--layout", &layout].iter().chain(arguments).copied().collect();
        Handler::start(self.folder.path(), &self.path("memory"), &all)
    }

    fn load(&self, handler: &Handler, special: &str) -> Vmm {
        Vmm::load(&handler.socket, &self.path("memory"), &self.regions, special)
    }
}

#[test]
fn vms_get_every_byte_and_zeros_for_what_they_give_back() {
    let snapshot = Snapshot::new(48);
    let mut handler = snapshot.serve(&["--fetch-free"]);
    assert_eq!(handler.serving["colored"], true, "{}", handler.serving);
    let mut vms = [snapshot.load(&handler, ""), snapshot.load(&handler, "")];
    for _ in &vms {
        let started = handler.event("started");
        assert_eq!(started["memory_bytes"], 48 << 20);
        assert_eq!(started["regions"], snapshot.regions.len());
    }
    // Before, between and after faults.
    for vm in &mut vms {
        vm.run("give-back 4000 4500");
        vm.begin("churn 7 4000");
    }
    for vm in &mut vms {
        vm.finish("churn 7 4000");
        vm.run("give-back 100 1100");
        vm.run("check");
    }
    for vm in vms {
        vm.shut_down();
        let ended = handler.event("ended");
        assert_eq!((&ended["error"], &ended["filled"]), (&().into(), &false.into()), "{ended}");
        assert!(ended["faults"].as_u64().unwrap() > 0);
    }
    handler.signal("-TERM");
    assert!(handler.ended().success());
    assert!(!handler.socket.exists());
}

#[test]
fn colors_are_kept_beside_the_memory_and_free_frames_do_not_move() {
    let snapshot = Snapshot::new(48);
    drop(snapshot.serve(&[]));
    let kept = fs::read(snapshot.path("memory.kscope")).unwrap();
    let handler = snapshot.serve(&[]);
    let origin = handler.serving["colors"].as_str().unwrap();
    assert!(origin.starts_with("kept in "), "{origin}");
    assert_eq!(handler.serving["free_memory"], "zero");
    // Any frame may be a free one.
    let mut vm = snapshot.load(&handler, "zeros 0");
    vm.run("check");
    vm.shut_down();
    let ended = handler.next("ended");
    let moved = ended["moved_bytes"].as_u64().unwrap();
    assert!(moved <= (48 << 20) - snapshot.free_frames as u64 * 4096, "{ended}");
    drop(handler);

    // Of another memory file: found anew.
    let mut memory = fs::read(snapshot.path("memory")).unwrap();
    memory.chunks_mut(4096).for_each(|frame| frame[4095] ^= 1);
    fs::write(snapshot.path("memory"), memory).unwrap();
    let handler = snapshot.serve(&[]);
    let origin = handler.serving["colors"].as_str().unwrap();
    assert!(!origin.starts_with("kept in "), "{origin}");
    assert_ne!(fs::read(snapshot.path("memory.kscope")).unwrap(), kept);
}

#[test]
fn what_cannot_be_colored_is_served_all_the_same() {
    let snapshot = Snapshot::new(48);
    let bytes: Vec<u8> = (0..6_u64 << 20).flat_map(|n| (n ^ 0x1234_5678).to_le_bytes()).collect();
    fs::write(snapshot.path("memory"), bytes).unwrap();
    let handler = snapshot.serve(&[]);
    assert_eq!(handler.serving["colored"], false);
    let mut vm = snapshot.load(&handler, "");
    vm.run("check");
    vm.shut_down();
    assert!(!snapshot.path("memory.kscope").exists());
}

#[test]
fn a_vmm_that_cannot_be_served_is_ended_and_others_run_on() {
    let snapshot = Snapshot::new(48);
    let handler = snapshot.serve(&["--fetch-free"]);
    let mut healthy = snapshot.load(&handler, "");
    handler.event("started");
    let path = snapshot.path("memory");

    let short: Vec<u64> = vec![16 << 20, 16 << 20];
    let mut wrong = Vmm::load(&handler.socket, &path, &short, "");
    let refused = handler.event("refused");
    assert_eq!(refused["vmm_ended"], true, "{refused}");
    let error = refused["error"].as_str().unwrap();
    assert!(error.contains("--memory has to be the snapshot's"), "{error}");
    assert!(!wrong.ended().success());

    // Without a descriptor nothing waits for this process.
    let _none = snapshot.load(&handler, "none");
    let refused = handler.event("refused");
    assert_eq!(refused["vmm_ended"], false, "{refused}");

    // One process, two connections: the first is served on.
    let mut twice = snapshot.load(&handler, "twice");
    let mut events = [handler.any_event(), handler.any_event()];
    events.sort_by_key(|event| event["event"] == "started");
    let [refused, started] = events;
    assert_eq!(started["event"], "started");
    assert!(refused["error"].as_str().unwrap().contains("has a VM here already"), "{refused}");
    assert_eq!(refused["vmm_ended"], false, "{refused}");
    twice.run("check");
    healthy.run("check");
}

#[test]
fn a_signal_ends_the_handler_when_no_vm_depends_on_it() {
    let snapshot = Snapshot::new(48);
    let mut handler = snapshot.serve(&["--fetch-free"]);
    let mut vm = snapshot.load(&handler, "");
    handler.event("started");
    vm.run("first 100");
    handler.signal("-TERM");
    assert_eq!(handler.event("waiting")["vms"], 1);
    assert!(!handler.socket.exists());
    vm.run("check");
    vm.shut_down();
    handler.event("ended");
    assert!(handler.ended().success());

    // Told to fill: the VM runs on alone.
    let mut handler = snapshot.serve(&["--fetch-free", "--fill-at-exit"]);
    let mut vm = snapshot.load(&handler, "");
    handler.event("started");
    vm.run("give-back 1000 2000");
    handler.signal("-TERM");
    let ended = handler.event("ended");
    assert_eq!((&ended["error"], &ended["filled"]), (&().into(), &true.into()), "{ended}");
    assert!(handler.ended().success());
    vm.run("check");
    vm.run("give-back 2000 3000");
    vm.run("check");
    vm.shut_down();

    // Told twice by the keyboard: the VM ends, too.
    let mut handler = snapshot.serve(&["--fetch-free"]);
    let mut vm = snapshot.load(&handler, "");
    handler.event("started");
    handler.signal("-INT");
    handler.event("waiting");
    handler.signal("-INT");
    assert_eq!(handler.event("ended")["vmm_ended"], true);
    assert!(!vm.ended().success());
    assert!(handler.ended().success());
}

#[test]
fn a_killed_handler_takes_its_vmms_along() {
    let snapshot = Snapshot::new(48);
    let mut handler = snapshot.serve(&["--fetch-free", "--supervisor", "none"]);
    let mut vm = snapshot.load(&handler, "");
    handler.event("started");
    vm.run("first 10");
    handler.signal("-KILL");
    assert!(!handler.ended().success());
    assert!(!vm.ended().success());

    // Unless it is told not to: the guest waits, and reads nothing that is wrong.
    let mut handler = snapshot.serve(&["--fetch-free", "--supervisor", "none", "--keep-vmm"]);
    let mut vm = snapshot.load(&handler, "");
    handler.event("started");
    vm.run("first 10");
    handler.signal("-KILL");
    handler.ended();
    vm.begin("check");
    std::thread::sleep(Duration::from_millis(300));
    assert!(vm.waits("check"));
}
