//! `kaleidoscope serve`: pages of a snapshot image, for clones or for a VMM.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod firecracker;
mod page_server;
mod parent;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod qemu;
mod report;
mod watched;

use crate::failure::Failure;
use crate::outfile::Files;

/// Serve a snapshot image's pages to clones, or a VMM's memory.
///
/// Colors the image, and hands clones what they start from and every page that they ask for, over
/// Unix sockets and TCP, until it is told to stop (Ctrl-C). The image must not change meanwhile:
/// its file's size and time stamps are watched, and when they change, clients get errors instead of
/// pages. With --verify all, each page is compared before it is sent.
///
/// TCP reaches no further than this host unless there are certificates on both sides.
#[derive(Clone, Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  kaleidoscope serve ram.bin --layout layout.txt --listen unix:/run/parent.sock
      to clones on this host that run as the same user
  kaleidoscope serve mem.snap --format firecracker \\
          --listen unix:/run/parent.sock --listen tcp:127.0.0.1:7411
      at two addresses
  kaleidoscope serve ram.bin --map-from guest.kscope --listen tcp:[::]:7411 \\
          --cert me.pem --key me.key --ca ca.pem
      colored before; to other hosts that have a certificate of the same authority
  kaleidoscope serve ram.bin --listen unix:/run/a.sock --replica tcp:other:7411 \\
          --descriptor-to guest.kclone
      clones switch to another server of the same image if this one fails; what they start from is
      also in a file
  kaleidoscope serve ram.bin --regs regs.txt --page-tables --listen unix:/run/parent.sock
      a guest whose kernel is not known, colored by its page tables
  kaleidoscope serve firecracker --socket uffd.sock --memory snapshot.mem
      a Firecracker VM's memory, through its userfaultfd
  kaleidoscope serve qemu --image snapshot --to in.sock
      a QEMU VM's memory, by a postcopy migration"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    vmm: Option<Vmm>,
    #[command(flatten)]
    pages: Option<page_server::Args>,
}

/// VMMs whose memory is served.
#[derive(Clone, Debug, clap::Subcommand)]
enum Vmm {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Firecracker(Box<firecracker::Args>),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Qemu(Box<qemu::Args>),
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        match (&self.vmm, &self.pages) {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            (Some(Vmm::Firecracker(args)), _) => args.files(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            (Some(Vmm::Qemu(args)), _) => args.files(),
            (None, Some(args)) => args.files(),
            (None, None) => Files::new(),
        }
    }

    /// Serves until a signal comes.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match (&self.vmm, &self.pages) {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            (Some(Vmm::Firecracker(args)), _) => args.run(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            (Some(Vmm::Qemu(args)), _) => args.run(),
            (None, Some(args)) => args.run(),
            // The image and --listen are required where there is no subcommand.
            (None, None) => Err(Failure::new("nothing to serve: give an image")),
        }
    }
}
