//! A small VMM for Linux guests with one vCPU, RAM, a serial console, and a disk. It boots a kernel
//! and an initramfs, and shows how a VMM uses the library.
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

/// The software that a guest boots.
pub(crate) struct Software<'a> {
    /// A kernel: bzImage or vmlinux.
    pub(crate) kernel: &'a Path,
    /// Its initramfs: a cpio archive, compressed or not; empty for none.
    pub(crate) initramfs: &'a [u8],
    /// Its command line.
    pub(crate) words: &'a str,
    /// Its disk, if it has one.
    pub(crate) disk: Option<Disk>,
}

/// A snapshot of a guest, from which clones are made.
pub(crate) struct LinuxSnapshot {
    pub(crate) machine: Snapshot,
    /// The disk's contents at the freeze.
    disk: Option<Disk>,
}

/// A guest.
pub(crate) struct Linux {
    /// Declared before the devices, and so dropped first, because its vCPUs use the devices.
    pub(crate) machine: Machine,
    pub(crate) devices: Arc<Platform>,
}

impl Linux {
    /// A guest with `mib` MiB of RAM, ready to boot.
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

    /// Takes a snapshot of the guest and its disk. The guest resumes afterwards.
    pub(crate) fn freeze(&mut self) -> Outcome<LinuxSnapshot> {
        let machine = self.machine.freeze()?;
        Ok(LinuxSnapshot { machine, disk: self.devices.frozen_disk() })
    }

    /// A local clone, which shares the parent's memory copy-on-write.
    pub(crate) fn local(
        host: &Arc<Host>,
        snapshot: &LinuxSnapshot,
        console: Arc<Console>,
    ) -> Outcome<Self> {
        let devices = snapshot.devices(console)?;
        let machine = Machine::clone_of(host, &snapshot.machine, Arc::clone(&devices) as _)?;
        Self::connected(machine, devices)
    }

    /// A clone of a guest whose pages are fetched on demand.
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
