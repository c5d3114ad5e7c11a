//! `kaleidoscope clone`: clones of a running guest, in our own VMM or in another one.

mod linux;
mod qemu;

use crate::failure::Failure;
use crate::outfile::Files;

/// Boot Linux on KVM, freeze it while it runs, and start clones of it; or clone a VM of QEMU.
///
/// The guest has one processor, RAM, a serial line as its console, and a disk if it is given one.
/// When it has said what `--when` waits for it is snapshotted, and goes on; what every page of it is,
/// is found from outside. Each clone is told its identity on its console.
#[derive(Clone, Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  kaleidoscope clone --kernel vmlinux --init target/release/kaleidoscope-guest -o clones
      workers that check their memory; clones prove that they have all of it
  kaleidoscope clone --kernel vmlinuz --initramfs initrd.img --when 'login:' --clones 16 -o clones
      16 clones of any Linux that has come to its login prompt; their consoles are in files
  kaleidoscope clone --kernel vmlinux --disk root.ext4 --memory 1G --when 'login:' -o clones \\
          --append 'console=ttyS0 root=/dev/vda rw'
      a guest with a disk; what it and its clones write to it they keep to themselves
  kaleidoscope clone --kernel vmlinux --init ./server --when ready --tell 'id {id}\\n' \\
          --until serving --ways copied --policy predicted
      a program of your own as the guest's only one; clones whose pages come as they are touched
  kaleidoscope clone qemu --qmp parent.sock -o snapshot --clones 4
      clones of a VM that an unmodified QEMU runs"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    vmm: Option<Vmm>,
    #[command(flatten)]
    linux: Option<linux::Args>,
}

/// VMMs whose VMs are cloned.
#[derive(Clone, Debug, clap::Subcommand)]
enum Vmm {
    Qemu(Box<qemu::Args>),
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        match (&self.vmm, &self.linux) {
            (Some(Vmm::Qemu(args)), _) => args.files(),
            (None, Some(args)) => args.files(),
            (None, None) => Files::new(),
        }
    }

    /// Clones.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match (&self.vmm, &self.linux) {
            (Some(Vmm::Qemu(args)), _) => args.run(),
            (None, Some(args)) => args.run(),
            // The kernel is required where there is no subcommand.
            (None, None) => Err(Failure::new("nothing to clone: give a kernel")),
        }
    }
}
