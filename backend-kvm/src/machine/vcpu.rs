//! A vCPU and its thread.

use super::devices::Devices;
use super::run_state::{RunState, Stopped};
use crate::error::{Asked, Error};
use crate::sys::VcpuHandle;
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
    fd: Arc<Mutex<VcpuHandle>>,
    run_state: Arc<RunState>,
    devices: Arc<dyn Devices>,
    thread: Option<JoinHandle<()>>,
}

/// The signal that makes a vCPU's thread leave the guest. Its handler does nothing.
fn signal() -> i32 {
    static HANDLER: Once = Once::new();
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {}
    HANDLER.call_once(|| {
        // Without the handler, the signal would end the process at the first freeze.
        let _ = register_signal_handler(SIGRTMIN(), nothing);
    });
    SIGRTMIN()
}

impl Vcpu {
    pub(super) fn new(
        fd: VcpuHandle,
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

    /// The vCPU's descriptor, for use by another thread while the vCPU is paused.
    pub(super) fn fd(&self) -> Arc<Mutex<VcpuHandle>> {
        Arc::clone(&self.fd)
    }

    /// The vCPU's descriptor, locked; blocks while the vCPU runs.
    pub(super) fn lock(&self) -> MutexGuard<'_, VcpuHandle> {
        self.fd.lock()
    }

    /// Starts the vCPU's thread, unless it is running already.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        if self.thread.is_some() {
            return Ok(());
        }
        signal();
        let (fd, run_state) = (Arc::clone(&self.fd), Arc::clone(&self.run_state));
        let (devices, index) = (Arc::clone(&self.devices), self.index);
        let ending = Arc::clone(&run_state);
        // Devices are the embedder's code. After a panic in them, the machine cannot continue.
        let panicked = move |error: Panicked| ending.end(Stopped::Ended(error.to_string()));
        let run = move || run(&fd, index, &run_state, &*devices);
        let thread = service::spawn(&format!("vcpu{index}"), 256 << 10, run, panicked);
        self.thread = Some(thread.asked("starting a vCPU's thread")?);
        Ok(())
    }

    /// Makes the vCPU's thread leave the guest.
    pub(super) fn kick(&self) {
        if let Some(thread) = &self.thread {
            // Signaling a thread that has ended fails, and is not needed.
            let _ = thread.kill(signal());
        }
    }

    /// Whether the vCPU's thread, which was told to end, has ended. If not, it is signaled again.
    pub(super) fn has_ended(&mut self) -> bool {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            self.kick();
            return false;
        }
        if let Some(thread) = self.thread.take() {
            // The panic has been reported.
            let _ = thread.join();
        }
        true
    }
}

/// The loop of a vCPU's thread.
fn run(fd: &Mutex<VcpuHandle>, index: usize, run_state: &RunState, devices: &dyn Devices) {
    let (clock, mut idle) = (SystemClock::new(), Retry::endless());
    let mut is_parked = true;
    while run_state.wait(&mut is_parked) {
        let mut fd = fd.lock();
        let ran = (|| {
            while !run_state.is_stop_requested() {
                match step(&mut fd, index, devices)? {
                    RunResult::Exited | RunResult::Interrupted => idle.reset(),
                    // Without a timeout: another vCPU of the guest decides when this one starts.
                    RunResult::NotRunnable => drop(idle.pause(&clock)),
                }
            }
            // KVM completes an exit (a port read, say) on the next KVM_RUN. With immediate_exit
            // set, KVM_RUN completes it and returns without running the guest, so that the saved
            // state lies on an instruction boundary.
            fd.set_kvm_immediate_exit(1);
            while step(&mut fd, index, devices)? == RunResult::Exited {}
            fd.set_kvm_immediate_exit(0);
            Ok::<_, String>(())
        })();
        if let Err(how) = ran {
            run_state.end(Stopped::Ended(format!("vCPU {index}: {how}")));
            return;
        }
    }
}

/// Why KVM_RUN returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RunResult {
    /// The guest exited to user space; the exit was handled.
    Exited,
    /// A signal or an immediate exit.
    Interrupted,
    /// The guest was not entered: the vCPU waits for another one to start it (INIT, SIPI).
    NotRunnable,
}

/// Runs the guest until its next exit, and handles the exit.
fn step(fd: &mut VcpuFd, index: usize, devices: &dyn Devices) -> Result<RunResult, String> {
    match fd.run() {
        Ok(VcpuExit::IoOut(port, bytes)) => devices.port_write(index, port, bytes),
        Ok(VcpuExit::IoIn(port, bytes)) => devices.port_read(index, port, bytes),
        Ok(VcpuExit::MmioWrite(gpa, bytes)) => devices.memory_write(index, gpa, bytes),
        Ok(VcpuExit::MmioRead(gpa, bytes)) => devices.memory_read(index, gpa, bytes),
        Ok(VcpuExit::Intr) => return Ok(RunResult::Interrupted),
        Ok(VcpuExit::IrqWindowOpen) => {}
        Ok(VcpuExit::Hlt) => return Err("halted".into()),
        Ok(VcpuExit::Shutdown) => return Err("shut down (a triple fault, or a reset)".into()),
        Ok(VcpuExit::SystemEvent(kind, _)) => return Err(format!("system event {kind}")),
        Ok(VcpuExit::FailEntry(reason, _)) => {
            return Err(format!("KVM could not enter the guest: reason {reason:#x}"));
        }
        Ok(other) => return Err(format!("{other:?}")),
        Err(error) => match Errno::from_raw_os_error(error.errno()) {
            Errno::INTR => return Ok(RunResult::Interrupted),
            Errno::AGAIN => return Ok(RunResult::NotRunnable),
            error => return Err(format!("KVM_RUN: {error}")),
        },
    }
    Ok(RunResult::Exited)
}
