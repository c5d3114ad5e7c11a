//! Devices that panic or block: their machine ends and reports the reason.

use crate::common::{TestResult, host};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_kvm::ErrorKind;
use kaleidoscope_kvm::machine::{Devices, Host, Machine};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The port of the test devices.
const PORT: u16 = 0x10;

/// A machine whose vCPUs write to the port in a loop, in real mode: `mov al, 42`, `out 16, al`,
/// `jmp` to the `out`.
fn machine(host: &Arc<Host>, vcpus: usize, devices: Arc<dyn Devices>) -> TestResult<Machine> {
    let layout = MemoryLayout::contiguous(1 << 20)?;
    let machine = Machine::new(host, layout, vcpus, devices)?;
    machine.write(Gpa(0x1000), &[0xb0, 0x2a, 0xe6, 0x10, 0xeb, 0xfc])?;
    for vcpu in 0..vcpus {
        let (mut regs, mut sregs) = machine.registers(vcpu)?;
        (regs.rip, regs.rflags) = (0x1000, 2);
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        machine.set_registers(vcpu, &regs, &sregs)?;
    }
    Ok(machine)
}

fn ended(machine: &Machine) -> String {
    let start = Instant::now();
    loop {
        if let Some(how) = machine.ended() {
            return how;
        }
        assert!(start.elapsed() < Duration::from_secs(180), "the machine does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Panics when the first vCPU writes to it.
struct Fragile;

impl Devices for Fragile {
    fn port_write(&self, vcpu: usize, port: u16, bytes: &[u8]) {
        assert!((vcpu, port) != (0, PORT), "vCPU {vcpu} wrote {bytes:?}");
    }
}

#[test]
fn a_device_that_panics_ends_its_machine() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let mut machine = machine(&host, 2, Arc::new(Fragile))?;
    machine.resume()?;
    let how = ended(&machine);
    assert_eq!(how, "the thread `vcpu0` panicked: vCPU 0 wrote [42]");
    // Later requests fail at once with the same reason; no call waits for the vanished thread.
    let is_it = |error: kaleidoscope_kvm::Error| {
        error.kind() == ErrorKind::Ended && error.to_string().ends_with(&how)
    };
    assert!(is_it(machine.pause().unwrap_err()));
    assert!(is_it(machine.freeze().unwrap_err()));
    assert!(is_it(machine.resume().unwrap_err()));
    Ok(())
}

/// Panics when saved.
struct Unsaved;

impl Devices for Unsaved {
    #[expect(clippy::panic, reason = "on purpose")]
    fn save(&self) -> Vec<u8> {
        panic!("nothing to write on")
    }
}

#[test]
fn a_device_that_cannot_be_saved_ends_its_machine() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    for runs in [false, true] {
        let mut machine = machine(&host, 2, Arc::new(Unsaved))?;
        if runs {
            machine.resume()?;
        }
        let error = machine.freeze().unwrap_err();
        assert!(
            error.kind() == ErrorKind::Ended && error.to_string().contains("nothing to write on"),
            "{error}"
        );
        assert!(ended(&machine).contains("panicked: nothing to write on"));
    }
    Ok(())
}

/// Blocks the vCPU until released.
struct Stuck {
    entered: Mutex<Sender<()>>,
    release: Mutex<Receiver<()>>,
}

impl Devices for Stuck {
    fn port_write(&self, _: usize, port: u16, _: &[u8]) {
        if port == PORT {
            let _ = self.entered.lock().unwrap_or_else(PoisonError::into_inner).send(());
            let _ = self.release.lock().unwrap_or_else(PoisonError::into_inner).recv();
        }
    }
}

#[test]
fn a_device_that_does_not_come_back_is_not_waited_for_for_ever() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let ((entered, enters), (release, released)) = (channel(), channel());
    let devices = Stuck { entered: Mutex::new(entered), release: Mutex::new(released) };
    let devices = Arc::new(devices);
    let mut machine = machine(&host, 1, Arc::clone(&devices) as _)?;
    machine.resume()?;
    enters.recv_timeout(Duration::from_secs(180))?;
    drop(machine);
    assert_eq!(Arc::strong_count(&devices), 2, "the vCPU thread still holds it");
    // The thread continues with its memory still mapped, and ends.
    drop(release);
    let start = Instant::now();
    while Arc::strong_count(&devices) > 1 {
        assert!(start.elapsed() < Duration::from_secs(180), "the vCPU thread does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
