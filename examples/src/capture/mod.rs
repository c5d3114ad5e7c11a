//! `kaleidoscope capture`: a running VM as an image.

mod cloud_hypervisor;

use crate::failure::Failure;
use crate::outfile::Files;

/// Capture a running VM, so that clones of it can be started.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  kaleidoscope capture cloud-hypervisor --socket capture.sock -o parent
      a VM that cloud-hypervisor sends to this socket")]
pub(crate) enum Command {
    CloudHypervisor(cloud_hypervisor::Args),
}

impl Command {
    /// What is written.
    pub(crate) fn files(&self) -> Files {
        match self {
            Self::CloudHypervisor(args) => args.files(),
        }
    }

    /// Captures a VM.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::CloudHypervisor(args) => args.run(),
        }
    }
}
