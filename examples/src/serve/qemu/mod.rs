//! `kaleidoscope serve qemu`: the source of postcopy migrations into QEMU.

mod parent;
mod report;
mod stream;
mod vm;

use super::event::json;
use crate::args::seconds;
use crate::failure::Failure;
use crate::interrupt::Stop;
use crate::outfile::Files;
use crate::replay::policies::{PolicyChoice, for_a_clone};
use crate::stdio::print_line;
use nix::sys::signal::Signal;
use parent::Parent;
use report::Event;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use vm::{Control, Vm};

/// How often signals are looked at.
const TICK: Duration = Duration::from_millis(50);

/// Serve the memory of a captured VM to QEMU, which runs a clone of it.
///
/// QEMU is not modified. It waits for a migration (-incoming) with the capability postcopy-ram, and
/// gets the state of the devices at once, so that the guest runs. Each page that the guest touches
/// is sent when it does; the pages that the policy expects it to touch next are sent with it, and
/// all others meanwhile. When QEMU has all pages, it needs this process no more.
///
/// Free frames are sent as zeros, which are nine bytes each, if the snapshot allows that.
///
/// If this process ends before that, QEMU pauses the clone for ever: end it. A first signal sends
/// what is missing and ends then; SIGINT once more ends at once.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope clone qemu --qmp parent.sock -o snapshot --clones 0
      captures the VM that clones are made of
  qemu-system-x86_64 ... -incoming defer -qmp unix:clone.sock,server=on,wait=off
      the clone, with the arguments of its parent; its RAM is any memory of the same size
  (echo '{\"execute\": \"qmp_capabilities\"}
         {\"execute\": \"migrate-set-capabilities\", \"arguments\": {\"capabilities\":
           [{\"capability\": \"postcopy-ram\", \"state\": true}]}}
         {\"execute\": \"migrate-incoming\", \"arguments\": {\"uri\": \"unix:in.sock\"}}';
   sleep 1) | socat - unix:clone.sock
      what the clone is told
  kaleidoscope serve qemu --from snapshot --to in.sock
      serves it
  kaleidoscope serve qemu --from snapshot --to a.sock --to b.sock --policy region --rate 0
      two clones, which get only what they touch and what the policy expects them to touch")]
pub(crate) struct Args {
    /// The folder of a captured VM, from `kaleidoscope clone qemu`
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Unix socket at which a QEMU waits for a migration; may be given several times
    #[arg(long, value_name = "SOCKET", required = true)]
    to: Vec<PathBuf>,
    /// What is sent before it is touched: a policy of `kaleidoscope replay`, other than the oracle
    #[arg(long, value_name = "NAME", default_value = "predicted", value_parser = for_a_clone)]
    policy: PolicyChoice,
    /// Send free frames, too, whatever those hold
    #[arg(long)]
    fetch_free: bool,
    /// Pages that are sent in a second while none is asked for; 0 sends none before a signal.
    /// As fast as QEMU takes them unless given
    #[arg(long, value_name = "PAGES")]
    rate: Option<u32>,
    /// How long QEMU may take to listen
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    timeout: Duration,
    /// Print events as JSON objects, each on a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        Files::new().reads(self.policy.input())
    }

    /// Serves until all VMs have their memory.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let parent = Arc::new(Parent::open(self)?);
        let vms: Vec<_> =
            (1..).zip(&self.to).map(|(n, to)| Vm::connect(n, to, self.timeout)).collect();
        let vms = vms.into_iter().collect::<Result<Vec<_>, _>>()?;
        let control = Arc::new(Control::default());
        for vm in &vms {
            control.watch(vm).map_err(Failure::new)?;
        }
        // Until here, a signal ends the command.
        let stop = Stop::take_every();
        self.print(&Event::serving(self, &parent))?;
        let (results, ended) = channel();
        let mut left = vms.len();
        for vm in vms {
            let (parent, control) = (Arc::clone(&parent), Arc::clone(&control));
            let (results, rate) = (results.clone(), self.rate);
            let thread = std::thread::Builder::new().name(format!("vm{}", vm.number()));
            let serve = move || {
                let number = vm.number();
                // A panic of the codec is an error of this VM alone.
                let served = std::panic::AssertUnwindSafe(|| vm.serve(&parent, rate, &control));
                let event = std::panic::catch_unwind(served)
                    .unwrap_or_else(|_| Event::failed(number, "serving it panicked"));
                // The receiver lives until all have sent.
                let _ = results.send(event);
            };
            thread.spawn(serve).map_err(|e| Failure::new(format_args!("no thread: {e}")))?;
        }
        let mut failures = 0;
        while left > 0 {
            match ended.recv_timeout(TICK) {
                Ok(event) => {
                    left -= 1;
                    failures += usize::from(event.is_failure());
                    self.print(&event)?;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            match stop.signal_within(Duration::ZERO) {
                Some(Signal::SIGINT) if control.is_filling() => control.abandon(),
                Some(_) => control.fill(),
                None => {}
            }
        }
        if failures > 0 {
            return Err(Failure::new(format_args!("{failures} of {} VMs failed", self.to.len())));
        }
        Ok(())
    }

    fn print(&self, event: &Event) -> Result<(), Failure> {
        print_line(if self.json { json(event) } else { event.text() })
    }
}
