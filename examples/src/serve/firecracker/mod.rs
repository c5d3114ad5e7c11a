//! `kaleidoscope serve firecracker`: the page-fault handler of Firecracker VMs.

mod kept;
mod report;
mod stored;
mod vm;

use super::event::json;
use super::template::{Template, TemplateArgs, beside};
use crate::args::LayoutArgs;
use crate::failure::Failure;
use crate::interrupt::{Stop, forget_predecessor};
use crate::outfile::Files;
use crate::replay::policies::{PolicyChoice, for_a_clone};
use crate::stdio::{Sayer, print_line};
use crate::supervise::{self, Holder, Store};
use kept::{Listening, Memory};
use nix::sys::signal::Signal;
use report::Event;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use vm::{Handler, Vms};

/// How often signals and threads are looked at.
const TICK: Duration = Duration::from_millis(50);

/// Serve the memory of Firecracker VMs that load a snapshot.
///
/// Firecracker loads a snapshot at once, and its guest gets each page when it touches it, from this
/// process, through a userfaultfd (`"backend_type": "Uffd"`). The memory file is colored when the
/// handler starts for the first time; the colors are kept beside it (MEM.kscope), and tell which
/// pages to install before they are touched. No recording is needed. If the guest cannot be
/// colored, it is served all the same.
///
/// Two processes run: the handler, and a supervisor that holds copies of its descriptors. If one of
/// them dies, the other starts it again, and the VMs go on. A VM whose pages can no longer be
/// served has its VMM ended, because its guest would wait for ever: after an error, and when both
/// processes are killed.
///
/// SIGTERM ends both when no VM depends on them any more. SIGUSR2 starts another handler, from the
/// program's present file: an upgrade that no VM notices.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope serve firecracker --socket /run/uffd.sock --memory snapshot.mem
      for any number of VMs that load this snapshot
  curl --unix-socket fc.sock -X PUT http://localhost/snapshot/load \\
          -d '{\"snapshot_path\": \"snapshot.state\", \"resume_vm\": true,
               \"mem_backend\": {\"backend_type\": \"Uffd\", \"backend_path\": \"/run/uffd.sock\"}}'
      what Firecracker is told
  kaleidoscope serve firecracker --socket s.sock --memory old.mem --format firecracker-1.12
      a snapshot of more than 3 GiB that Firecracker 1.12 or older made
  kaleidoscope serve firecracker --socket s.sock --memory m.mem --user 1234 --json
      VMMs that a jailer runs as user 1234; events as lines of JSON")]
pub(crate) struct Args {
    /// Socket at which Firecracker connects: its `backend_path`
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The snapshot's memory file
    #[arg(long, value_name = "MEM")]
    memory: PathBuf,
    #[command(flatten)]
    layout: LayoutArgs,
    /// The memory file's colors, from `kaleidoscope color -o`, instead of those kept beside it
    #[arg(long, value_name = "FILE.kscope")]
    colors: Option<PathBuf>,
    /// What is installed before it is touched: a policy of `kaleidoscope replay`, other than the
    /// oracle
    #[arg(long, value_name = "NAME", default_value = "predicted", value_parser = for_a_clone)]
    policy: PolicyChoice,
    /// Read free frames from the file, too, whatever those hold
    #[arg(long)]
    fetch_free: bool,
    /// Threads that answer a VM's faults
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Another user whose processes may connect, by number; may be given several times
    #[arg(long, value_name = "UID")]
    user: Vec<u32>,
    /// At SIGTERM, install all missing pages of all VMs, so that they run on alone, and end
    #[arg(long)]
    fill_at_exit: bool,
    /// Which process holds copies of the handler's descriptors, so that VMs survive its death
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = Holder::Own)]
    supervisor: Holder,
    /// Leave a VMM alone whose pages can no longer be served: its guest waits until you end it
    #[arg(long)]
    keep_vmm: bool,
    /// Print events as JSON objects, each on a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        Files::new().reads([&self.memory]).reads(self.layout.inputs()).reads(&self.colors)
    }

    /// Serves until a signal comes and no VM depends on the process.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        supervise::run(self.supervisor, &self.socket, |store| self.handle(store))
    }

    /// Serves as the handler.
    fn handle(&self, store: Store) -> Result<(), Failure> {
        raise_descriptor_limit();
        let Memory { image, identity } = kept::memory(self, &store)?;
        let template = Template::of(
            image,
            &TemplateArgs {
                memory: &self.memory,
                kept: beside(&self.memory),
                colors: self.colors.as_deref(),
                policy: &self.policy,
                fetch_free: self.fetch_free,
            },
        )?;
        // From here on there is a socket to remove.
        let stop = Stop::take_every();
        let Listening { socket, file } = kept::socket(self, &store)?;
        let serving = Event::serving(self, &template, socket.path());
        print_line(if self.json { json(&serving) } else { serving.text() })?;
        let handler = Handler::new(self, template, identity, store, Sayer::start()?);
        let handler = Arc::new(handler);
        let vms = handler.vms();
        Handler::tend(&handler)?;
        let mut taken_over = Handler::take_over(&handler);
        handler.store().ready();

        while !stop.comes_within(Duration::ZERO) {
            if let Some(stream) = socket.accept_within(TICK)? {
                Handler::serve(&handler, stream);
            }
            // From then on the guard knows their VMMs from this process.
            taken_over = taken_over.filter(|last| {
                let goes_on = !vms.have_started(*last);
                if !goes_on {
                    forget_predecessor();
                }
                goes_on
            });
        }
        handler.store().remove(supervise::SOCKET);
        drop(socket);
        file.perform();
        self.end(&handler, &vms, &stop);
        handler.store().stopping();
        Ok(())
    }

    /// Waits until no VM depends on the process.
    fn end(&self, handler: &Handler, vms: &Vms, stop: &Stop) {
        let left = vms.count();
        if left > 0 && !self.fill_at_exit {
            handler.say(&Event::Waiting { vms: left });
        }
        while vms.count() > 0 {
            if self.fill_at_exit {
                vms.fill();
            }
            if stop.signal_within(TICK) == Some(Signal::SIGINT) {
                vms.abandon();
            }
        }
    }
}

/// A VM takes some ten descriptors, and 1,024 are usual for all.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Without it, some VMs fewer can be served.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
