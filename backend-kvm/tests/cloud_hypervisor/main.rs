//! VMs of cloud-hypervisor: a clone whose memory arrives on demand, and a capture. Another process
//! plays the VMM.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod capture;
mod clone;
mod double;
mod failures;

use double::{PAGE, SHARED, SLOTS, STATE, config, page};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::clone::LocalSource;
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use kaleidoscope_kvm::cloud_hypervisor::{Session, SessionBuilder};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use userfaultfd::UffdBuilder;

/// The variable that makes a test's process a receiver: its orders.
const RECEIVER: &str = "KALEIDOSCOPE_TEST_RECEIVER";

/// What the other process does.
#[test]
fn receiver() {
    let Ok(orders) = std::env::var(RECEIVER) else { return };
    double::receiver::run(&orders);
}

/// A VMM in another process that receives a VM. It is killed on drop.
struct Vmm {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Vmm {
    fn start(orders: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vm.sock");
        let orders = format!("{} {orders}", socket.display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "receiver", "--nocapture"]).env(RECEIVER, orders);
        Self { child: command.spawn().unwrap(), socket, _folder: folder }
    }

    fn status(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Pages that a VMM that has ended asked for.
    fn requests(&self) -> u64 {
        let path = double::receiver::beside(&self.socket, "requests");
        std::fs::read_to_string(path).unwrap().parse().unwrap()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether memory files can be filled here.
fn can_watch() -> bool {
    let made = UffdBuilder::new().user_mode_only(false).create();
    if let Err(error) = &made {
        println!("******** SKIPPED: no userfaultfd here ({error}) ********");
    }
    made.is_ok()
}

fn layout() -> MemoryLayout {
    let slots: Vec<_> = SLOTS.iter().map(|(_, gpa, size, _)| (Gpa(*gpa), *size)).collect();
    MemoryLayout::new(&slots).unwrap()
}

/// The parent's memory.
fn memory() -> VecMemory {
    let mut memory = VecMemory::zeroed(layout());
    for (_, gpa, size, _) in SLOTS {
        for at in (gpa..gpa + size).step_by(PAGE) {
            memory.write(Gpa(at), &page(at)).unwrap();
        }
    }
    memory
}

/// A clone of the parent, whose memory is configured like this.
fn clone_with(memory_config: &str) -> SessionBuilder {
    let source = LocalSource::new(Arc::new(memory()) as _);
    let config = config(&SLOTS, memory_config);
    Session::builder(ColorMap::unknown(layout()), source, config, STATE.to_vec())
}

fn clone() -> SessionBuilder {
    clone_with(SHARED)
}
