//! Guests for the tests, and how to observe them.

#![expect(clippy::unwrap_used, reason = "tests")]

use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_kvm::guest::{CheckPort, Mismatch, Plan, progress, verify};
use kaleidoscope_kvm::machine::{Host, Machine, Snapshot};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) type TestResult<T> = Result<T, Box<dyn std::error::Error>>;

/// The host's KVM; prints why the test is skipped if there is none.
pub(crate) fn host() -> Option<Arc<Host>> {
    match Host::open() {
        Ok(host) => Some(host),
        Err(error) => {
            println!("******** SKIPPED: {error} ********");
            None
        }
    }
}

/// Whether userfaultfd is available; prints that the test is skipped if not.
pub(crate) fn has_userfaultfd() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let device = std::fs::File::options().read(true).write(true).open("/dev/userfaultfd");
    if !is_root && device.is_err() {
        println!(
            "******** SKIPPED: userfaultfd needs root, or the right to open its device ********"
        );
    }
    is_root || device.is_ok()
}

#[derive(Debug)]
pub(crate) enum VerifyError {
    Page(Mismatch),
    Read(#[expect(dead_code, reason = "shown by a test that fails")] String),
}

impl From<Mismatch> for VerifyError {
    fn from(mismatch: Mismatch) -> Self {
        Self::Page(mismatch)
    }
}

pub(crate) fn rounds(plan: &Plan, machine: &Machine) -> Vec<u64> {
    progress(plan, &mut |gpa, buf| machine.read(gpa, buf)).unwrap()
}

/// Waits until every process has completed `more` rounds; fails on a check failure.
pub(crate) fn wait_for_rounds(plan: &Plan, machine: &Machine, check_port: &CheckPort, more: u64) {
    let before = rounds(plan, machine);
    let start = Instant::now();
    loop {
        assert_eq!(check_port.failure(), None, "{machine:?} {:?}", failure(machine));
        assert_eq!(machine.ended(), None);
        let now = rounds(plan, machine);
        if now.iter().zip(&before).all(|(now, before)| *now >= before + more) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(180), "{before:?} to {now:?}: too slow");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Registers of all vCPUs, after a check failure.
pub(crate) fn failure(machine: &Machine) -> String {
    machine.pause().unwrap();
    let all = (0..).map_while(|vcpu| machine.registers(vcpu).ok());
    all.map(|(regs, sregs)| format!("{regs:x?} cr2 {:#x}\n", sregs.cr2)).collect()
}

pub(crate) fn verify_image(plan: &Plan, snapshot: &Snapshot) {
    let result = verify::<VerifyError>(plan, &mut |gpa, buf| {
        snapshot.image.read(gpa, buf).map_err(|error| VerifyError::Read(error.to_string()))
    });
    result.unwrap();
}

pub(crate) fn verify_machine(plan: &Plan, machine: &Machine) {
    machine.pause().unwrap();
    let result = verify::<VerifyError>(plan, &mut |gpa, buf| {
        machine.read(gpa, buf).map_err(|error| VerifyError::Read(error.to_string()))
    });
    result.unwrap();
}
