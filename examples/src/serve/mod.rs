//! `kaleidoscope serve`: pages of a snapshot image, for clones or for a VMM.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cloud_hypervisor;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod firecracker;
mod page_server;
mod parent;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod qemu;
mod report;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod template;
mod watched;

use crate::failure::Failure;
use crate::outfile::Files;
use clap::{ArgMatches, Command, Subcommand};

/// The pages of an image for clones, or the memory of a VMM.
#[derive(Clone, Debug)]
pub(crate) enum Args {
    Pages(Box<page_server::Args>),
    Vmm(Vmm),
}

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

// The derived code would want the arguments of both at once.
impl clap::FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(match matches.subcommand_name() {
            Some(_) => Self::Vmm(Vmm::from_arg_matches(matches)?),
            None => Self::Pages(Box::new(page_server::Args::from_arg_matches(matches)?)),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        // Before the arguments, whose description is the command's.
        let command = Vmm::augment_subcommands(command)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true);
        <page_server::Args as clap::Args>::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        match self {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Vmm(Vmm::Firecracker(args)) => args.files(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Vmm(Vmm::Qemu(args)) => args.files(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Vmm(Vmm::CloudHypervisor(args)) => args.files(),
            Self::Pages(args) => args.files(),
        }
    }

    /// Serves until a signal comes.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match self {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Vmm(Vmm::Firecracker(args)) => args.run(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Vmm(Vmm::Qemu(args)) => args.run(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Vmm(Vmm::CloudHypervisor(args)) => args.run(),
            Self::Pages(args) => args.run(),
        }
    }
}
