//! A vCPU and its thread.

use super::devices::Devices;
use super::run_state::{RunState, Stopped};
use crate::error::{Asked, KvmError};
use kaleidoscope_core::clone::Retry;
use kaleidoscope_core::clone::ports::SystemClock;
use kaleidoscope_core::service::{self, Panicked};
use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// A vCPU of a machine.
pub(super) struct Vcpu {
    index: usize,
    fd: Arc<Mutex<VcpuFd>>,
    run_state: Arc<RunState>,
    devices: Arc<dyn Devices>,
    thread: Option<JoinHandle<()>>,
}

/// The signal that takes a vCPU's thread out of the guest. Its handler does nothing.
fn signal() -> i32 {
    static HANDLER: Once = Once::new();
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {}
    HANDLER.call_once(|| {
        // Without it the signal would end the process; the first freeze would show that.
        let _ = register_signal_handler(SIGRTMIN(), nothing);
    });
    SIGRTMIN()
}

impl Vcpu {
    pub(super) fn new(
        fd: VcpuFd,
        index: usize,
        run_state: &Arc<RunState>,
        devices: &Arc<dyn Devices>,
    ) -> Self {
        Self {
            index,
            fd: Arc::new(Mutex::new(fd)),
            run_state: Arc::clone(run_state),
            devices: Arc::clone(devices),
            thread: None,
        }
    }

    /// The vCPU itself, for a thread that uses it when it does not run.
    pub(super) fn fd(&self) -> Arc<Mutex<VcpuFd>> {
        Arc::clone(&self.fd)
    }

    /// The vCPU itself, when it does not run.
    pub(super) fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock()
    }

    /// Starts its thread, unless it was started before.
    pub(super) fn start(&mut self) -> Result<(), KvmError> {
        if self.thread.is_some() {
            return Ok(());
        }
        signal();
        let (fd, run_state) = (Arc::clone(&self.fd), Arc::clone(&self.run_state));
        let (devices, index) = (Arc::clone(&self.devices), self.index);
        let ending = Arc::clone(&run_state);
        // Devices are the embedder's code: without one of its vCPUs a machine does not go on.
        let panicked = move |error: Panicked| ending.end(Stopped::Ended(error.to_string()));
        let run = move || run(&fd, index, &run_state, &*devices);
        let thread = service::spawn(&format!("vcpu{index}"), 256 << 10, run, panicked);
        self.thread = Some(thread.asked("starting a vCPU's thread")?);
        Ok(())
    }

    /// Takes its thread out of the guest, if it is in there now.
    pub(super) fn kick(&self) {
        if let Some(thread) = &self.thread {
            // A thread that has ended needs no signal.
            let _ = thread.kill(signal());
        }
    }

    /// Whether its thread has ended, which was told to. It is taken out of the guest for that.
    pub(super) fn has_ended(&mut self) -> bool {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            self.kick();
            return false;
        }
        if let Some(thread) = self.thread.take() {
            // A panic there has been told.
            let _ = thread.join();
        }
        true
    }
}

/// The thread of a vCPU.
fn run(fd: &Mutex<VcpuFd>, index: usize, run_state: &RunState, devices: &dyn Devices) {
    let (clock, mut idle) = (SystemClock::new(), Retry::endless());
    let mut is_parked = true;
    while run_state.wait(&mut is_parked) {
        let mut fd = fd.lock();
        let ran = (|| {
            while !run_state.is_stop_wanted() {
                match step(&mut fd, index, devices)? {
                    Left::OnItsOwn | Left::Interrupted => idle.reset(),
                    // Without an end: another vCPU of the guest decides when.
                    Left::NotYet => drop(idle.pause(&clock)),
                }
            }
            // What an exit left half done (a port that was read, say) is done on the next entry.
            // Have that entry now, and leave at once: what is saved is then a state
            // between two instructions.
            fd.set_kvm_immediate_exit(1);
            while step(&mut fd, index, devices)? == Left::OnItsOwn {}
            fd.set_kvm_immediate_exit(0);
            Ok::<_, String>(())
        })();
        if let Err(how) = ran {
            run_state.end(Stopped::Ended(format!("vCPU {index}: {how}")));
            return;
        }
    }
}

/// Why a vCPU left the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    /// It wanted something.
    OnItsOwn,
    /// It was to.
    Interrupted,
    /// It did not even enter it: another vCPU has to start this one first.
    NotYet,
}

/// Runs the guest until it wants something, and gives it that.
fn step(fd: &mut VcpuFd, index: usize, devices: &dyn Devices) -> Result<Left, String> {
    match fd.run() {
        Ok(VcpuExit::IoOut(port, bytes)) => devices.port_write(index, port, bytes),
        Ok(VcpuExit::IoIn(port, bytes)) => devices.port_read(index, port, bytes),
        Ok(VcpuExit::MmioWrite(gpa, bytes)) => devices.memory_write(index, gpa, bytes),
        Ok(VcpuExit::MmioRead(gpa, bytes)) => devices.memory_read(index, gpa, bytes),
        Ok(VcpuExit::Intr) => return Ok(Left::Interrupted),
        Ok(VcpuExit::IrqWindowOpen) => {}
        Ok(VcpuExit::Hlt) => return Err("halted".into()),
        Ok(VcpuExit::Shutdown) => return Err("shut down (a triple fault, or a reset)".into()),
        Ok(VcpuExit::SystemEvent(kind, _)) => return Err(format!("system event {kind}")),
        Ok(VcpuExit::FailEntry(reason, _)) => {
            return Err(format!("KVM could not enter the guest: reason {reason:#x}"));
        }
        Ok(other) => return Err(format!("{other:?}")),
        Err(error) => match Errno::from_raw_os_error(error.errno()) {
            Errno::INTR => return Ok(Left::Interrupted),
            Errno::AGAIN => return Ok(Left::NotYet),
            error => return Err(format!("KVM_RUN: {error}")),
        },
    }
    Ok(Left::OnItsOwn)
}
