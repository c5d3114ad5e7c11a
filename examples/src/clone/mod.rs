//! `kaleidoscope clone`: clones of a running guest, in our own VMM or in another one.

mod linux;
mod qemu;

use crate::args::OrSubcommand;
use crate::failure::Failure;
use crate::outfile::Files;

/// A guest that is booted, or a VM of another VMM.
pub(crate) type Args = OrSubcommand<linux::Args, Vmm>;

/// VMMs whose VMs are cloned.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Vmm {
    Qemu(Box<qemu::Args>),
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        match self {
            Self::Sub(Vmm::Qemu(args)) => args.files(),
            Self::Own(args) => args.files(),
        }
    }

    /// Clones.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Sub(Vmm::Qemu(args)) => args.run(),
            Self::Own(args) => args.run(),
        }
    }
}
