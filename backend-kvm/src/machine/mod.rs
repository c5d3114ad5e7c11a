//! Machines: a VM with its RAM and vCPUs that runs, pauses, is snapshotted and starts as a clone.

mod affinity;
mod copy_ahead;
mod device_memory;
mod devices;
mod hooked;
mod host;
mod run_state;
mod stop;
mod vcpu;

pub use device_memory::DeviceMemory;
pub use devices::{Devices, NoDevices};
pub use host::Host;

use crate::error::{Asked, Error};
use crate::memory::{GuestRam, Ram, SnapshotMemory};
use crate::state::{MachineState, create_interrupt_chips, registers};
use crate::sys::VmHandle;
use crate::uffd::{OnDemand, Part, Running};
use copy_ahead::CopyAhead;
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::clone::ports::SystemClock;
use kaleidoscope_core::clone::{Engine, Retry};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::registers::VcpuRegisters;
use kaleidoscope_core::service::contained;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_sregs};
use parking_lot::{Mutex, RwLock};
use run_state::{RunState, Stopped, TIMEOUT};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stop::Stop;
use vcpu::Vcpu;
use vmm_sys_util::eventfd::EventFd;

/// A virtual machine. Dropping it ends the guest and waits for calls into its [devices](Devices),
/// for at most 20 seconds: a call that takes longer keeps the guest's memory mapped until it
/// returns.
pub struct Machine {
    host: Arc<Host>,
    run_state: Arc<RunState>,
    vcpus: Vec<Vcpu>,
    devices: Arc<dyn Devices>,
    vm: Arc<VmHandle>,
    ram: Arc<RwLock<GuestRam>>,
    /// Copies frames ahead of the guest's writes.
    copy_ahead: Option<CopyAhead>,
    /// Fills the RAM of an on-demand clone.
    fill: Option<Running>,
    /// Held for a whole freeze.
    freezing: Mutex<()>,
}

/// The result of a freeze: everything that a clone is made of.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The machine's RAM at the instant of the freeze.
    pub image: Arc<SnapshotMemory>,
    /// State of vCPUs, interrupt controllers, timer, clock and devices.
    pub state: Arc<MachineState>,
    /// How long the machine was paused: from the first request to a vCPU to stop until all vCPUs
    /// ran again.
    pub pause: Duration,
}

impl Machine {
    /// A machine with this number of vCPUs and zeroed RAM, paused. A bare layout stands for RAM on
    /// 4 KiB pages.
    ///
    /// # Errors
    /// [`Error`] when KVM or the system refuses a request.
    pub fn new(
        host: &Arc<Host>,
        ram: impl Into<Ram>,
        vcpus: usize,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, Error> {
        let machine = Self::with_ram(host, GuestRam::new(ram.into())?, vcpus, devices)?;
        for (id, vcpu) in (0..).zip(&machine.vcpus) {
            vcpu.lock().set_cpuid2(&host.cpuid(id)).asked("setting CPUID")?;
        }
        Ok(machine)
    }

    /// A clone of a machine that was snapshotted on the same host, paused. It shares unmodified
    /// pages with its siblings, and copies a page on the first write to it.
    ///
    /// # Errors
    /// [`Error`] when KVM or the system refuses a request.
    pub fn clone_of(
        host: &Arc<Host>,
        snapshot: &Snapshot,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, Error> {
        let ram = GuestRam::of_image(Arc::clone(&snapshot.image))?;
        Self::restored(host, ram, &snapshot.state, devices)
    }

    /// A machine with this RAM, restored to this state.
    pub(crate) fn restored(
        host: &Arc<Host>,
        ram: GuestRam,
        state: &MachineState,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, Error> {
        let machine = Self::with_ram(host, ram, state.vcpus(), devices)?;
        machine.load(state)?;
        Ok(machine)
    }

    /// A clone of a machine that was snapshotted on any host, paused. Its pages are fetched on
    /// demand and prefetched with the pages related to them (post-copy). When pages can no longer
    /// be fetched, the clone ends.
    ///
    /// # Errors
    /// [`Error`] when KVM or the system refuses a request.
    pub fn on_demand_clone(
        host: &Arc<Host>,
        state: &MachineState,
        post_copy: OnDemand,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, Error> {
        let layout = post_copy.locality.map().layout().clone();
        let run_state = Arc::new(RunState::new(state.vcpus()));
        let ends = Arc::clone(&run_state);
        let mapping = post_copy.map()?;
        let part = Part { mapping: Arc::clone(&mapping), frames: 0..layout.frames() };
        let fill =
            Running::start_own(post_copy, &[part], state.vcpus(), move |why, take_memory| {
                ends.end_after(take_memory, format!("its pages can no longer be fetched: {why}"));
            })?;
        let ram = GuestRam::filled(layout, mapping);
        let mut machine = Self::with_run_state(host, ram, run_state, state.vcpus(), devices)?;
        machine.fill = Some(fill);
        machine.load(state)?;
        Ok(machine)
    }

    /// Connects an eventfd to an input of the interrupt controllers (a GSI): signaling the event
    /// raises an edge on that input.
    ///
    /// # Errors
    /// [`Error`] when KVM refuses the request.
    pub fn connect(&self, event: &EventFd, line: u32) -> Result<(), Error> {
        self.vm.register_irqfd(event, line).asked("connecting an interrupt")
    }

    /// The engine that fills the RAM of an on-demand clone, for statistics and for giving memory
    /// back. `None` for other machines.
    #[must_use]
    pub fn engine(&self) -> Option<&Engine> {
        self.fill.as_ref().map(|fill| &**fill.engine())
    }

    /// Loads all state except the RAM.
    fn load(&self, state: &MachineState) -> Result<(), Error> {
        state.load(&self.vm, self.vcpus.iter().map(Vcpu::lock))
    }

    fn with_ram(
        host: &Arc<Host>,
        ram: GuestRam,
        vcpus: usize,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, Error> {
        Self::with_run_state(host, ram, Arc::new(RunState::new(vcpus)), vcpus, devices)
    }

    fn with_run_state(
        host: &Arc<Host>,
        ram: GuestRam,
        run_state: Arc<RunState>,
        vcpus: usize,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, Error> {
        let vm = VmHandle::new(host.kvm().create_vm().asked("creating a VM")?);
        create_interrupt_chips(&vm)?;
        ram.install(&vm)?;
        let vcpus = (0u64..).take(vcpus).map(|id| {
            let fd = vm.create_vcpu(id).asked("creating a vCPU")?;
            Ok(Vcpu::new(fd, usize::try_from(id).unwrap_or(0), &run_state, &devices))
        });
        Ok(Self {
            host: Arc::clone(host),
            devices: Arc::clone(&devices),
            vcpus: vcpus.collect::<Result<_, Error>>()?,
            run_state,
            vm: Arc::new(vm),
            ram: Arc::new(RwLock::new(ram)),
            copy_ahead: None,
            fill: None,
            freezing: Mutex::new(()),
        })
    }

    /// The guest-physical layout of the guest's RAM.
    #[must_use]
    pub fn layout(&self) -> MemoryLayout {
        self.ram.read().layout().clone()
    }

    /// General and system registers of a vCPU, which must be paused.
    ///
    /// # Errors
    /// [`Error`] when KVM refuses the request, or there is no such vCPU.
    pub fn registers(&self, vcpu: usize) -> Result<(kvm_regs, kvm_sregs), Error> {
        let fd = self.vcpu(vcpu)?.lock();
        Ok((fd.get_regs().asked("reading registers")?, fd.get_sregs().asked("reading registers")?))
    }

    /// Sets registers of a vCPU, which must be paused, and makes the vCPU runnable.
    ///
    /// # Errors
    /// [`Error`] when KVM refuses the request, or there is no such vCPU.
    pub fn set_registers(
        &self,
        vcpu: usize,
        regs: &kvm_regs,
        sregs: &kvm_sregs,
    ) -> Result<(), Error> {
        let fd = self.vcpu(vcpu)?.lock();
        // Otherwise the application processors would wait for INIT and SIPI from the first vCPU.
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        fd.set_mp_state(runnable).asked("setting a vCPU's run state")?;
        fd.set_sregs(sregs).asked("setting system registers")?;
        fd.set_regs(regs).asked("setting registers")
    }

    fn vcpu(&self, vcpu: usize) -> Result<&Vcpu, Error> {
        self.vcpus.get(vcpu).ok_or_else(|| Error::input(format!("there is no vCPU {vcpu}")))
    }

    /// Copies bytes of the guest's RAM, which the guest may be writing concurrently.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`](crate::ErrorKind::OutOfRange) when the range does not lie in one
    /// region of RAM.
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        self.ram.read().read(gpa, buf)
    }

    /// Overwrites bytes of the guest's RAM.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`](crate::ErrorKind::OutOfRange) when the range does not lie in one
    /// region of RAM.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), Error> {
        self.ram.read().write(gpa, bytes)
    }

    /// Bytes of host memory that are private to this machine's RAM, as the kernel counts them.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) on a kernel before 6.7.
    pub fn memory_taken(&self) -> Result<u64, Error> {
        self.ram.read().own_bytes()
    }

    /// Frames that the machine has written since its last freeze, or since it became a clone:
    /// ranges of frame indexes, sorted, end exclusive. Empty for machines that were never
    /// snapshotted, and for on-demand clones. Frames that a parent or a sibling wrote are likely to
    /// be written by a clone, too.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) on a kernel before 6.7.
    pub fn written(&self) -> Result<Vec<std::ops::Range<u32>>, Error> {
        self.ram.read().written()
    }

    /// The [written](Self::written) frames that were shared with images of other parents before.
    /// Sharing such a frame saves nothing for this machine any more; policies that select frames to
    /// share learn from this.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) on a kernel before 6.7.
    pub fn diverged(&self) -> Result<Vec<std::ops::Range<u32>>, Error> {
        self.ram.read().diverged()
    }

    /// Gives frames (indexes, end exclusive) private memory with unchanged contents, so that the
    /// guest's first write to them copies nothing. [`Machine::copy_ahead`] does the same in the
    /// background.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) for frames past the end of the RAM, or
    /// when memory is exhausted.
    pub fn own(&self, frames: std::ops::Range<u32>) -> Result<(), Error> {
        self.ram.read().own(frames)
    }

    /// Starts or resumes the vCPUs.
    ///
    /// # Errors
    /// [`Error`] when a thread cannot be started, or the guest has ended.
    pub fn resume(&mut self) -> Result<(), Error> {
        for vcpu in &mut self.vcpus {
            vcpu.start()?;
        }
        self.run_state.resume()
    }

    /// Pauses all vCPUs, each on an instruction boundary with no exit half completed. Returns when
    /// all have stopped.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) when a vCPU does not stop in time.
    pub fn pause(&self) -> Result<(), Error> {
        self.run_state.pause(&self.vcpus)
    }

    /// Reads the vCPUs' registers that describe the guest's address spaces; pauses the machine for
    /// a moment. Repeated calls observe different processes.
    ///
    /// # Errors
    /// [`Error`] when a vCPU does not stop, or KVM refuses a request.
    pub fn look(&self) -> Result<Vec<VcpuRegisters>, Error> {
        let _one_at_a_time = self.freezing.lock();
        let ran = self.run_state.is_running();
        let paused = self.pause();
        let seen = (0..self.vcpus.len()).map(|cpu| {
            let (regs, sregs) = self.registers(cpu)?;
            Ok(registers(cpu, &regs, &sregs))
        });
        let seen = paused.and_then(|()| seen.collect());
        if ran {
            self.run_state.resume()?;
        }
        seen
    }

    /// Why the guest ended, if it did: a vCPU shut down or failed.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        match self.run_state.stopped() {
            Some(Stopped::Ended(how)) => Some(how),
            Some(Stopped::Dropped) | None => None,
        }
    }

    /// Freezes the machine: pauses it for a moment, and resumes it if it was running. Every clone
    /// of the returned snapshot starts with the bytes and state of that moment, whatever the
    /// machine does afterwards.
    ///
    /// The first freeze moves the machine to a private mapping of its memory and copies nothing.
    /// Later freezes, and those of clones, copy the pages written since, most of them before the
    /// machine is paused. An on-demand clone can be snapshotted once all of its pages are resident.
    /// Its memory is copied as a whole; with a shared page cache, the cache becomes the image and
    /// is not copied.
    ///
    /// # Errors
    /// [`Error`] when KVM or the system refuses a request; the machine then resumes.
    pub fn freeze(&self) -> Result<Snapshot, Error> {
        let _one_at_a_time = self.freezing.lock();
        if let Some(fill) = &self.fill
            && let Some(image) = fill.release()?
        {
            self.ram.write().set_image(image);
        }
        let mut prepared = self.ram.read().prepare()?;
        let stop = self.stop();
        let freeze = move || (stop.freeze(&mut prepared), prepared);
        let ((state, prepared), pause) = if self.run_state.is_running() {
            // If a vCPU did not stop, the machine resumes.
            let stopped = self.run_state.stop_for(&self.vcpus, freeze);
            stopped.inspect_err(|_| drop(self.run_state.resume()))?
        } else {
            let start = Instant::now();
            self.pause()?;
            let snapshot = contained("the freeze", freeze);
            let snapshot = snapshot.map_err(|error| {
                self.run_state.end(Stopped::Ended(error.to_string()));
                Error::ended(error)
            })?;
            (snapshot, start.elapsed())
        };
        let state = Arc::new(state?);
        let image = self.ram.write().image(prepared)?;
        Ok(Snapshot { image, state, pause })
    }

    /// Everything that a freeze needs of the machine.
    fn stop(&self) -> Stop {
        Stop {
            host: Arc::clone(&self.host),
            vm: Arc::clone(&self.vm),
            vcpus: self.vcpus.iter().map(Vcpu::fd).collect(),
            devices: Arc::clone(&self.devices),
            ram: Arc::clone(&self.ram),
            run_state: Arc::clone(&self.run_state),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.run_state.end(Stopped::Dropped);
        self.copy_ahead = None;
        // A vCPU may be waiting for a page.
        if let Some(fill) = &self.fill {
            fill.stop();
        }
        let (clock, mut retry) = (SystemClock::new(), Retry::new(TIMEOUT));
        while self.vcpus.iter_mut().map(Vcpu::has_ended).filter(|ended| !ended).count() > 0 {
            if !retry.pause(&clock) {
                // A thread that is still inside a device call may enter the guest once more. Its
                // vCPU keeps the guest's memory mapped until then (`VcpuHandle`).
                return;
            }
        }
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("vcpus", &self.vcpus.len())
            .field("ended", &self.ended())
            .finish_non_exhaustive()
    }
}
