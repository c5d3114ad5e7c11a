//! A small VMM for Linux guests: one vCPU, RAM, a kernel and its initramfs, a serial console. It shows how a VMM uses the library.
//!
//! ```text
//!  kernel.rs, initramfs.rs, platform.rs ─► RAM and registers ─► Machine ◄─ devices.rs ◄─► console.rs
//! ```

mod console;
mod devices;
mod initramfs;
mod kernel;
mod platform;

pub(crate) use console::Console;
pub(crate) use devices::Platform;
pub(crate) use initramfs::with_program;

use crate::vm::Outcome;
use kaleidoscope_kvm::lazy::Lazy;
use kaleidoscope_kvm::machine::{Frozen, Host, Machine};
use kaleidoscope_kvm::memory::{PageSize, Ram};
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
        let devices = Arc::new(Platform::new(console)?);
        let layout = platform::layout(mib)?;
        let ram = Ram { layout: layout.clone(), pages };
        let machine = Machine::new(host, ram, 1, Arc::clone(&devices) as _)?;
        let boot = kernel::load(software, &layout)?;
        boot.memory(&mut |gpa, bytes| Ok(machine.write(gpa, bytes)?))?;
        platform::enter(&machine, &boot)?;
        Self::connected(machine, devices)
    }

    /// A clone of a guest, which shares the parent's memory.
    pub(crate) fn local(host: &Arc<Host>, frozen: &Frozen, console: Arc<Console>) -> Outcome<Self> {
        let devices = Arc::new(Platform::restored(frozen.state.devices(), console)?);
        let machine = Machine::clone_of(host, frozen, Arc::clone(&devices) as _)?;
        Self::connected(machine, devices)
    }

    /// A clone of a guest whose pages come one by one.
    pub(crate) fn lazy(
        host: &Arc<Host>,
        frozen: &Frozen,
        lazy: Lazy,
        console: Arc<Console>,
    ) -> Outcome<Self> {
        let devices = Arc::new(Platform::restored(frozen.state.devices(), console)?);
        let machine = Machine::lazy_clone(host, &frozen.state, lazy, Arc::clone(&devices) as _)?;
        Self::connected(machine, devices)
    }

    fn connected(machine: Machine, devices: Arc<Platform>) -> Outcome<Self> {
        machine.connect(devices.interrupt(), devices::SERIAL_LINE)?;
        Ok(Self { machine, devices })
    }
}
