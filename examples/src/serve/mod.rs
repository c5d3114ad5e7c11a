//! `kaleidoscope serve`: pages of a snapshot image, for clones or for a VMM.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cloud_hypervisor;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod event;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod firecracker;
mod page_server;
mod parent;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod qemu;
mod report;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod template;
mod watched;

use crate::args::OrSubcommand;
use crate::failure::Failure;
use crate::outfile::Files;

/// The pages of an image for clones, or the memory of a VMM.
pub(crate) type Args = OrSubcommand<page_server::Args, Vmm>;

/// VMMs whose memory is served.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Vmm {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Firecracker(Box<firecracker::Args>),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Qemu(Box<qemu::Args>),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    CloudHypervisor(Box<cloud_hypervisor::Args>),
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        match self {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Sub(Vmm::Firecracker(args)) => args.files(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Sub(Vmm::Qemu(args)) => args.files(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Sub(Vmm::CloudHypervisor(args)) => args.files(),
            Self::Own(args) => args.files(),
        }
    }

    /// Serves until a signal comes.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match self {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Sub(Vmm::Firecracker(args)) => args.run(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Sub(Vmm::Qemu(args)) => args.run(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Sub(Vmm::CloudHypervisor(args)) => args.run(),
            Self::Own(args) => args.run(),
        }
    }
}
