//! The guest lab: real guests with real file systems. Their kernels report how their memory is
//! used; this is the ground truth that coloring is compared with.
//!
//! ```text
//! packages -> kernel, modules -> initramfs ─┐
//!          -> rootfs, disks ────────────────┼─> machine (QEMU) <─ control ─> agent (in the guest)
//!                                           │        │                          │
//!                                  ram.bin, layout, registers <─ pause      truth disk
//!                                           │
//!                                           └─> clones, whose touches are recorded (`trace`)
//! ```

pub(crate) mod agent;
mod build;
mod command;
mod config;
mod control;
mod error;
mod feature;
pub(crate) mod layout;
mod machine;
mod report;
mod run;
mod saved;
mod sparse;
mod steps;
mod symbols;
mod trace;
mod truth;

pub(crate) use error::Result;

use crate::outfile::Files;

/// Boot real guests whose memory can be compared with what they say of it themselves.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  kaleidoscope lab run -o guests/web
      boots a guest and saves its memory with its own account of it
  kaleidoscope lab trace guests/web --workload idle,shell
      records which frames clones of it touch")]
pub(crate) enum Command {
    Run(Box<run::Args>),
    Trace(trace::Args),
    Symbols(symbols::Args),
}

impl Command {
    /// The files that are read and written. Guests' folders are left out: a folder is created or
    /// replaced as a whole.
    pub(crate) fn files(&self) -> Files {
        match self {
            Self::Run(_) | Self::Trace(_) => Files::new(),
            Self::Symbols(args) => args.files(),
        }
    }

    /// Runs the subcommand.
    ///
    /// # Errors
    /// As the subcommand.
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Self::Run(args) => args.run(),
            Self::Trace(args) => args.run(),
            Self::Symbols(args) => args.run(),
        }
    }
}
