//! Machines: a VM with its RAM and vCPUs, which runs, stops, is snapshot and starts as a clone.

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

use crate::error::{Asked, KvmError};
use crate::memory::{GuestRam, Ram, SnapshotMemory};
use crate::state::{MachineState, make_board, registers};
use crate::uffd::{OnDemand, Part, Running};
use copy_ahead::CopyAhead;
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::clone::ports::SystemClock;
use kaleidoscope_core::clone::{Engine, Retry};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::registers::VcpuRegisters;
use kaleidoscope_core::service::contained;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_sregs};
use kvm_ioctls::VmFd;
use parking_lot::{Mutex, RwLock};
use run_state::{RunState, Stopped, TIMEOUT};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stop::Stop;
use vcpu::Vcpu;
use vmm_sys_util::eventfd::EventFd;

/// A machine. Ends when dropped, which waits for what its [devices](Devices) are doing, but not for
/// ever: after 20 seconds the memory of one that is kept from ending is given up, and stays taken.
pub struct Machine {
    host: Arc<Host>,
    run_state: Arc<RunState>,
    vcpus: Vec<Vcpu>,
    devices: Arc<dyn Devices>,
    /// Before the memory that it uses.
    vm: Arc<VmFd>,
    ram: Arc<RwLock<GuestRam>>,
    /// What copies ahead of the guest's writing.
    copying: Option<CopyAhead>,
    /// What fills the RAM, where it comes page by page.
    filling: Option<Running>,
    /// Held for a whole freeze.
    freezing: Mutex<()>,
}

/// What a freeze leaves: everything that a clone is made of.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The machine's RAM at that instant.
    pub image: Arc<SnapshotMemory>,
    /// All else.
    pub state: Arc<MachineState>,
    /// How long the machine stood still: from when the first of its vCPUs was told to stop until
    /// all of them ran again.
    pub pause: Duration,
}

impl Machine {
    /// A machine of so many vCPUs and zeroed RAM (a layout: on 4 KiB pages), which does not run
    /// yet.
    ///
    /// # Errors
    /// [`KvmError`] when KVM or the system refuses.
    pub fn new(
        host: &Arc<Host>,
        ram: impl Into<Ram>,
        vcpus: usize,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, KvmError> {
        let machine = Self::with_ram(host, GuestRam::new(ram.into())?, vcpus, devices)?;
        for (id, vcpu) in (0..).zip(&machine.vcpus) {
            vcpu.lock().set_cpuid2(&host.cpuid(id)).asked("setting CPUID")?;
        }
        Ok(machine)
    }

    /// A clone of a snapshot machine on the same host, which does not run yet: it shares what it
    /// reads with its siblings, and owns what it writes.
    ///
    /// # Errors
    /// [`KvmError`] when KVM or the system refuses.
    pub fn clone_of(
        host: &Arc<Host>,
        snapshot: &Snapshot,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, KvmError> {
        let ram = GuestRam::of_image(Arc::clone(&snapshot.image))?;
        Self::restored(host, ram, &snapshot.state, devices)
    }

    /// A machine with this RAM, in this state.
    pub(crate) fn restored(
        host: &Arc<Host>,
        ram: GuestRam,
        state: &MachineState,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, KvmError> {
        let machine = Self::with_ram(host, ram, state.vcpus(), devices)?;
        machine.load(state)?;
        Ok(machine)
    }

    /// A clone of a machine that was snapshot anywhere, which does not run yet: its pages come as
    /// it touches them, and what belongs to them ahead of that. When they cease to come the
    /// clone ends.
    ///
    /// # Errors
    /// [`KvmError`] when KVM or the system refuses.
    pub fn on_demand_clone(
        host: &Arc<Host>,
        state: &MachineState,
        post_copy: OnDemand,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, KvmError> {
        let layout = post_copy.locality.map().layout().clone();
        let run_state = Arc::new(RunState::new(state.vcpus()));
        let ends = Arc::clone(&run_state);
        let mapping = post_copy.map()?;
        let part = Part { mapping: Arc::clone(&mapping), frames: 0..layout.frames() };
        let filling =
            Running::start_own(post_copy, &[part], state.vcpus(), move |why, take_memory| {
                ends.end_after(take_memory, format!("its pages ceased to come: {why}"));
            })?;
        let ram = GuestRam::filled(layout, mapping);
        let mut machine = Self::with_control(host, ram, run_state, state.vcpus(), devices)?;
        machine.filling = Some(filling);
        machine.load(state)?;
        Ok(machine)
    }

    /// Connects an event with an input of the interrupt controllers: whoever signals it raises an
    /// edge there.
    ///
    /// # Errors
    /// [`KvmError`] when KVM refuses.
    pub fn connect(&self, event: &EventFd, line: u32) -> Result<(), KvmError> {
        self.vm.register_irqfd(event, line).asked("connecting an interrupt")
    }

    /// What fills the machine's RAM, where it comes page by page: for statistics, and for giving
    /// memory back.
    #[must_use]
    pub fn engine(&self) -> Option<&Engine> {
        self.filling.as_ref().map(|filling| &**filling.engine())
    }

    /// Loads the state of all but the RAM.
    fn load(&self, state: &MachineState) -> Result<(), KvmError> {
        state.load(&self.vm, self.vcpus.iter().map(Vcpu::lock))
    }

    fn with_ram(
        host: &Arc<Host>,
        ram: GuestRam,
        vcpus: usize,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, KvmError> {
        Self::with_control(host, ram, Arc::new(RunState::new(vcpus)), vcpus, devices)
    }

    fn with_control(
        host: &Arc<Host>,
        ram: GuestRam,
        run_state: Arc<RunState>,
        vcpus: usize,
        devices: Arc<dyn Devices>,
    ) -> Result<Self, KvmError> {
        let vm = host.kvm().create_vm().asked("making a VM")?;
        make_board(&vm)?;
        ram.install(&vm)?;
        let vcpus = (0u64..).take(vcpus).map(|id| {
            let fd = vm.create_vcpu(id).asked("making a vCPU")?;
            Ok(Vcpu::new(fd, usize::try_from(id).unwrap_or(0), &run_state, &devices))
        });
        Ok(Self {
            host: Arc::clone(host),
            devices: Arc::clone(&devices),
            vcpus: vcpus.collect::<Result<_, KvmError>>()?,
            run_state,
            vm: Arc::new(vm),
            ram: Arc::new(RwLock::new(ram)),
            copying: None,
            filling: None,
            freezing: Mutex::new(()),
        })
    }

    /// The guest's RAM.
    #[must_use]
    pub fn layout(&self) -> MemoryLayout {
        self.ram.read().layout().clone()
    }

    /// Registers of a vCPU that does not run.
    ///
    /// # Errors
    /// [`KvmError`] when KVM refuses, or there is no such vCPU.
    pub fn registers(&self, vcpu: usize) -> Result<(kvm_regs, kvm_sregs), KvmError> {
        let fd = self.vcpu(vcpu)?.lock();
        Ok((fd.get_regs().asked("reading registers")?, fd.get_sregs().asked("reading registers")?))
    }

    /// Sets registers of a vCPU that does not run, and makes it one that will.
    ///
    /// # Errors
    /// [`KvmError`] when KVM refuses, or there is no such vCPU.
    pub fn set_registers(
        &self,
        vcpu: usize,
        regs: &kvm_regs,
        sregs: &kvm_sregs,
    ) -> Result<(), KvmError> {
        let fd = self.vcpu(vcpu)?.lock();
        // Those after the first wait for the first to start them, otherwise.
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        fd.set_mp_state(runnable).asked("setting a vCPU's run state")?;
        fd.set_sregs(sregs).asked("setting system registers")?;
        fd.set_regs(regs).asked("setting registers")
    }

    fn vcpu(&self, vcpu: usize) -> Result<&Vcpu, KvmError> {
        self.vcpus.get(vcpu).ok_or_else(|| KvmError::State(format!("there is no vCPU {vcpu}")))
    }

    /// Copies bytes of the guest's RAM, which the guest may be writing meanwhile.
    ///
    /// # Errors
    /// [`KvmError::NotRam`] when the range is not one run of RAM.
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), KvmError> {
        self.ram.read().read(gpa, buf)
    }

    /// Overwrites bytes of the guest's RAM.
    ///
    /// # Errors
    /// [`KvmError::NotRam`] when the range is not one run of RAM.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), KvmError> {
        self.ram.read().write(gpa, bytes)
    }

    /// Bytes of memory that the machine's RAM takes and that it shares with nobody, as the kernel
    /// counts them.
    ///
    /// # Errors
    /// [`KvmError::Refused`] on a kernel before 6.7.
    pub fn memory_taken(&self) -> Result<u64, KvmError> {
        self.ram.read().own_bytes()
    }

    /// Frames that the machine has written since its last freeze, or since it became a clone: runs
    /// in order. None for machines that were never snapshot, or whose memory comes page by
    /// page. What a parent or a sibling wrote, a clone will write.
    ///
    /// # Errors
    /// [`KvmError::Refused`] on a kernel before 6.7.
    pub fn written(&self) -> Result<Vec<std::ops::Range<u32>>, KvmError> {
        self.ram.read().written()
    }

    /// Frames among those that have diverged: they were shared with images of other parents, and
    /// sharing them saves nothing for this machine any more. What a selector of frames learns
    /// from.
    ///
    /// # Errors
    /// [`KvmError::Refused`] on a kernel before 6.7.
    pub fn diverged(&self) -> Result<Vec<std::ops::Range<u32>>, KvmError> {
        self.ram.read().diverged()
    }

    /// Gives frames memory of their own, with the bytes that they have, ahead of the guest's
    /// writing to them: it then waits for no copying. [`Machine::copy_ahead`] does so while the
    /// guest runs.
    ///
    /// # Errors
    /// [`KvmError::Refused`] for frames that there are not, or when there is no memory.
    pub fn own(&self, frames: std::ops::Range<u32>) -> Result<(), KvmError> {
        self.ram.read().own(frames)
    }

    /// Starts the vCPUs, or has them go on.
    ///
    /// # Errors
    /// [`KvmError`] when the system has no threads to give, or the guest has ended.
    pub fn resume(&mut self) -> Result<(), KvmError> {
        for vcpu in &mut self.vcpus {
            vcpu.start()?;
        }
        self.run_state.go()
    }

    /// Stops all vCPUs, each between two instructions with nothing half done. Returns when they
    /// have stopped.
    ///
    /// # Errors
    /// [`KvmError::Stuck`] when one does not.
    pub fn pause(&self) -> Result<(), KvmError> {
        self.run_state.pause(&self.vcpus)
    }

    /// What the vCPUs' registers say of the guest's memory now; the machine stands still for a
    /// moment. Several looks see several processes.
    ///
    /// # Errors
    /// [`KvmError`] when a vCPU does not stop, or KVM refuses.
    pub fn look(&self) -> Result<Vec<VcpuRegisters>, KvmError> {
        let _one_at_a_time = self.freezing.lock();
        let ran = self.run_state.is_running();
        let paused = self.pause();
        let seen = (0..self.vcpus.len()).map(|cpu| {
            let (regs, sregs) = self.registers(cpu)?;
            Ok(registers(cpu, &regs, &sregs))
        });
        let seen = paused.and_then(|()| seen.collect());
        if ran {
            self.run_state.go()?;
        }
        seen
    }

    /// How the guest ended, if it did: a vCPU shut down, or broke.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        match self.run_state.stopped() {
            Some(Stopped::Ended(how)) => Some(how),
            Some(Stopped::Dropped) | None => None,
        }
    }

    /// Freezes the machine: it stands still for a moment, and goes on if it ran. Every clone of
    /// what this returns has its bytes and state of that moment, whatever the machine does
    /// then.
    ///
    /// The first freeze moves the machine to a private mapping of its memory, which takes no
    /// copying. Later ones, and those of clones, copy what was written since, most of it before
    /// the machine is paused. A clone whose pages came one by one can be snapshot once it has
    /// all of them. It is copied as a whole; or, where they came to a stage, nothing of what is
    /// there is copied: the stage becomes an image.
    ///
    /// # Errors
    /// [`KvmError`] when KVM or the system refuses; the machine then goes on.
    pub fn freeze(&self) -> Result<Snapshot, KvmError> {
        let _one_at_a_time = self.freezing.lock();
        if let Some(filling) = &self.filling
            && let Some(image) = filling.release()?
        {
            self.ram.write().based_on(image);
        }
        let mut prepared = self.ram.read().prepare()?;
        let stop = self.stop();
        let freeze = move || (stop.freeze(&mut prepared), prepared);
        let ((state, prepared), pause) = if self.run_state.is_running() {
            // Where it did not even stop it goes on.
            let stopped = self.run_state.stop_for(&self.vcpus, freeze);
            stopped.inspect_err(|_| drop(self.run_state.go()))?
        } else {
            let start = Instant::now();
            self.pause()?;
            let snapshot = contained("what was to be done while it stood still", freeze);
            let snapshot = snapshot.map_err(|error| {
                self.run_state.end(Stopped::Ended(error.to_string()));
                KvmError::Ended(error.to_string())
            })?;
            (snapshot, start.elapsed())
        };
        let state = Arc::new(state?);
        let image = self.ram.write().image(prepared)?;
        Ok(Snapshot { image, state, pause })
    }

    /// What a freeze needs.
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
        self.copying = None;
        // A vCPU may be waiting for a page.
        if let Some(filling) = &self.filling {
            filling.stop();
        }
        let (clock, mut retry) = (SystemClock::new(), Retry::new(TIMEOUT));
        while self.vcpus.iter_mut().map(Vcpu::has_ended).filter(|ended| !ended).count() > 0 {
            if !retry.pause(&clock) {
                // A thread that a device keeps may enter the guest once more. Its memory stays
                // where it is then, for the rest of the process's life: the guest
                // must not write to what comes to these addresses next.
                std::mem::forget(Arc::clone(&self.ram));
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
