//! `kaleidoscope clone qemu`: clones of a VM that an unmodified QEMU runs.

mod arguments;
mod capture;
mod devices;
mod disks;
mod image;
mod instance;
mod memory;
mod nodes;
mod parent;
mod pause;
mod report;

use crate::args::seconds;
use crate::failure::Failure;
use crate::interrupt::Stop;
use crate::outfile::Files;
use crate::qemu::folder::{self, Captured};
use crate::stdio::print_line;
use capture::Way;
use instance::Clones;
use report::Event;
use std::path::PathBuf;
use std::time::Duration;

/// Clone a VM that QEMU runs.
///
/// QEMU is controlled over QMP; it is not modified. Its RAM has to be a shared memory backend
/// (-object memory-backend-memfd,id=ram,size=1G,share=on -machine memory-backend=ram). The VM is
/// paused for a moment; the state of its devices, its memory and its disks of that instant go into
/// a folder, and it runs on. From then on, the VM writes to new overlay files in place of its disk
/// images, which must stay as they are for as long as there are clones.
///
/// Clones start on this host from the folder. They share its memory image until they write, and
/// have overlay disks, MAC addresses, host ports and sockets of their own, in DIR/clone-N. They end
/// with this command, and what they wrote to their disks ends with them.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope clone qemu --qmp parent.sock -o snapshot --clones 4
      four clones; QMP sockets of clones are snapshot/clone-1/qmp.sock and so on
  kaleidoscope clone qemu --qmp parent.sock -o snapshot --clones 0
      the snapshot alone
  kaleidoscope clone qemu --from snapshot --clones 8 --json
      more clones of it; events as lines of JSON
  kaleidoscope color snapshot/ram.bin --layout snapshot/layout.txt --regs snapshot/regs.txt
      what its memory is")]
pub(crate) struct Args {
    /// The QMP socket of the VM to clone
    #[arg(long, value_name = "SOCKET", required_unless_present = "from")]
    qmp: Option<PathBuf>,
    /// The process of the VM, if the socket does not tell (-daemonize)
    #[arg(long, value_name = "PID", requires = "qmp", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// Folder for the snapshot, which must not exist
    #[arg(short, long, value_name = "DIR", requires = "qmp", required_unless_present = "from")]
    output: Option<PathBuf>,
    /// Start clones from this folder, in place of capturing a VM
    #[arg(long, value_name = "DIR", conflicts_with_all = ["qmp", "output"])]
    from: Option<PathBuf>,
    /// How the memory is captured
    #[arg(long, value_enum, value_name = "WAY", default_value_t = Way::Auto, conflicts_with = "from")]
    way: Way,
    /// Folder for the overlays that the VM writes to from now on; beside its images unless given
    #[arg(long, value_name = "DIR", conflicts_with = "from")]
    overlays: Option<PathBuf>,
    /// Longest time for the capture
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    timeout: Duration,
    /// Clones
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=1000))]
    clones: u16,
    /// Leave the clones paused, for you to continue them over QMP
    #[arg(long)]
    paused: bool,
    /// Print events as JSON objects, each on a line
    #[arg(long)]
    json: bool,
}

/// How often signals and clones are looked at.
const TICK: Duration = Duration::from_millis(50);

impl Args {
    /// What is read and written.
    pub(super) fn files(&self) -> Files {
        Files::new().writes_into(self.output.as_ref(), &folder::ALL)
    }

    /// Captures the VM, starts clones, and waits until they have ended or a signal comes.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let captured = match (&self.qmp, &self.output, &self.from) {
            (Some(qmp), Some(output), None) => {
                let (captured, capture) = capture::capture(self, qmp, output)?;
                self.print(&Event::Captured(capture))?;
                captured
            }
            (_, _, Some(from)) => Captured::open(from)?,
            // clap requires one of them.
            _ => return Err(Failure::new("nothing to clone: give --qmp and --output, or --from")),
        };
        if self.clones == 0 {
            return Ok(());
        }
        let stop = Stop::take();
        let mut clones = Clones::new(&captured)?;
        for _ in 0..self.clones {
            if stop.comes_within(Duration::ZERO) {
                return Ok(());
            }
            let started = clones.start(!self.paused)?;
            self.print(&Event::Started(started))?;
        }
        while !clones.is_empty() && !stop.comes_within(TICK) {
            for ended in clones.ended() {
                self.print(&Event::Ended(ended))?;
            }
        }
        Ok(())
    }

    fn print(&self, event: &Event) -> Result<(), Failure> {
        print_line(if self.json { event.json() } else { event.text() })
    }
}
