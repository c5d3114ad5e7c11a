//! `kaleidoscope clone`: clones of a running guest, in our own VMM or in another one.

mod linux;
mod qemu;

use crate::failure::Failure;
use crate::outfile::Files;
use clap::{ArgMatches, Command, Subcommand};

/// A guest that is booted, or a VM of another VMM.
#[derive(Clone, Debug)]
pub(crate) enum Args {
    Linux(Box<linux::Args>),
    Vmm(Vmm),
}

/// VMMs whose VMs are cloned.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Vmm {
    Qemu(Box<qemu::Args>),
}

// The derived code would want the arguments of both at once.
impl clap::FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(match matches.subcommand_name() {
            Some(_) => Self::Vmm(Vmm::from_arg_matches(matches)?),
            None => Self::Linux(Box::new(linux::Args::from_arg_matches(matches)?)),
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
        <linux::Args as clap::Args>::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        match self {
            Self::Vmm(Vmm::Qemu(args)) => args.files(),
            Self::Linux(args) => args.files(),
        }
    }

    /// Clones.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Vmm(Vmm::Qemu(args)) => args.run(),
            Self::Linux(args) => args.run(),
        }
    }
}
