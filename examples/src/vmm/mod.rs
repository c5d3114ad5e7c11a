//! A small VMM for Linux guests: one vCPU, RAM, a kernel and its initramfs, a serial console, a
//! disk. It shows how a VMM uses the library.
//!
//! ```text
//!  kernel.rs, initramfs.rs, platform.rs ─► RAM and registers ─► Machine ◄─ devices.rs ◄─► console.rs
//!                                                                              ▲
//!                                                     disk.rs ─► block.rs ─────┘
//!                                                                   ▲
//!                                                             virtqueue.rs
//! ```

mod block;
mod console;
mod devices;
mod disk;
mod initramfs;
mod kernel;
mod platform;
mod virtqueue;

pub(crate) use console::Console;
pub(crate) use devices::Platform;
pub(crate) use disk::Disk;
pub(crate) use initramfs::with_program;

use crate::vm::Outcome;
use kaleidoscope_kvm::machine::{Host, Machine, Snapshot};
use kaleidoscope_kvm::memory::{PageSize, Ram};
use kaleidoscope_kvm::uffd::OnDemand;
use std::path::Path;
use std::sync::Arc;

/// What to boot.
pub(crate) struct Software<'a> {
    /// A kernel: bzImage, or vmlinux.
    pub(crate) kernel: &'a Path,
    /// Its first root: a cpio archive, compressed or not.
    pub(crate) initramfs: &'a [u8],
    /// Its command line.
    pub(crate) words: &'a str,
    /// What is on its disk, if it has one.
    pub(crate) disk: Option<Disk>,
}

/// What clones of a guest are made of.
pub(crate) struct LinuxSnapshot {
    pub(crate) machine: Snapshot,
    /// What was on its disk.
    disk: Option<Disk>,
}

/// A guest.
pub(crate) struct Linux {
    /// Before the devices, which its vCPUs use.
    pub(crate) machine: Machine,
    pub(crate) devices: Arc<Platform>,
}

impl Linux {
    /// A guest that is about to boot.
    pub(crate) fn new(
        host: &Arc<Host>,
        software: &Software<'_>,
        (mib, pages): (u32, PageSize),
        console: Arc<Console>,
    ) -> Outcome<Self> {
        let devices = Arc::new(Platform::new(console, software.disk.clone())?);
        let layout = platform::layout(mib)?;
        let ram = Ram { layout: layout.clone(), pages };
        let machine = Machine::new(host, ram, 1, Arc::clone(&devices) as _)?;
        let boot = kernel::load(software, &layout)?;
        boot.memory(&mut |gpa, bytes| Ok(machine.write(gpa, bytes)?))?;
        platform::enter(&machine, &boot)?;
        Self::connected(machine, devices)
    }

    /// Freezes the guest, which goes on, and its disk.
    pub(crate) fn freeze(&mut self) -> Outcome<LinuxSnapshot> {
        let machine = self.machine.freeze()?;
        Ok(LinuxSnapshot { machine, disk: self.devices.frozen_disk() })
    }

    /// A clone of a guest, which shares the parent's memory.
    pub(crate) fn local(
        host: &Arc<Host>,
        snapshot: &LinuxSnapshot,
        console: Arc<Console>,
    ) -> Outcome<Self> {
        let devices = snapshot.devices(console)?;
        let machine = Machine::clone_of(host, &snapshot.machine, Arc::clone(&devices) as _)?;
        Self::connected(machine, devices)
    }

    /// A clone of a guest whose pages come one by one.
    pub(crate) fn on_demand(
        host: &Arc<Host>,
        snapshot: &LinuxSnapshot,
        on_demand: OnDemand,
        console: Arc<Console>,
    ) -> Outcome<Self> {
        let (devices, state) = (snapshot.devices(console)?, &snapshot.machine.state);
        let machine = Machine::on_demand_clone(host, state, on_demand, Arc::clone(&devices) as _)?;
        Self::connected(machine, devices)
    }

    fn connected(machine: Machine, devices: Arc<Platform>) -> Outcome<Self> {
        devices.connect(&machine)?;
        Ok(Self { machine, devices })
    }
}

impl LinuxSnapshot {
    /// Devices for a clone.
    fn devices(&self, console: Arc<Console>) -> Outcome<Arc<Platform>> {
        let saved = self.machine.state.devices();
        Ok(Arc::new(Platform::restored(saved, self.disk.clone(), console)?))
    }
}
