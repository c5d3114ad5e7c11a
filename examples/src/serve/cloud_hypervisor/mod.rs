//! `kaleidoscope serve cloud-hypervisor`: a clone of a captured VM in a cloud-hypervisor.

mod report;

use super::event::json;
use super::template::{Template, TemplateArgs, beside};
use crate::args::{ImageFormat, LayoutArgs, some_seconds};
use crate::failure::Failure;
use crate::interrupt::{Stop, arm_end};
use crate::outfile::Files;
use crate::replay::policies::{PolicyChoice, for_a_clone};
use crate::snapshot_folder::{SnapshotFolder, read};
use crate::stdio::{print_line, say};
use kaleidoscope_core::clone::{EngineOptions, LocalSource};
use kaleidoscope_core::replay::Trace;
use kaleidoscope_kvm::cloud_hypervisor::{Ended, Session};
use kaleidoscope_kvm::{Error, ErrorKind};
use nix::sys::signal::Signal;
use report::Event;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often signals and the session are looked at.
const TICK: Duration = Duration::from_millis(50);

/// Start a clone of a captured VM in a cloud-hypervisor, and serve its memory.
///
/// Plays the old host of a postcopy migration: cloud-hypervisor gets the configuration and the state
/// at once, and its guest runs while its memory arrives, from this process. Memory that is
/// configured with shared=on gets pages before the guest asks for them. The memory is colored when
/// it is served for the first time; the colors are kept beside it (ram.bin.kscope).
///
/// cloud-hypervisor (53.0 or later) asks for all of RAM in the background. When it has all, the VM
/// runs on alone, and the command ends. If pages cannot be delivered before, the VMM is ended: after
/// an error, and when this process is killed. SIGTERM is obeyed when the VM has all of its memory;
/// a second SIGINT ends the VMM.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope serve cloud-hypervisor parent --socket /run/clone.sock
      a clone of the VM that `kaleidoscope capture cloud-hypervisor` has written to `parent`
  ch-remote --api-socket clone.api receive-migration \\
          receiver_url=unix:/run/clone.sock,memory_mode=postcopy
      what the clone's cloud-hypervisor is told, before or meanwhile
  kaleidoscope serve cloud-hypervisor parent --socket s.sock --paused --policy demand --json
      left paused, without prefetch; events as lines of JSON")]
pub(crate) struct Args {
    /// Folder with the VM: ram.bin, layout.txt, config.json and state.json
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Socket at which cloud-hypervisor waits: its `receiver_url`
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The memory's colors, from `kaleidoscope color -o`, instead of those kept beside it
    #[arg(long, value_name = "FILE.kscope")]
    colors: Option<PathBuf>,
    /// What is delivered before it is touched: a policy of `kaleidoscope replay`, other than the
    /// oracle
    #[arg(long, value_name = "NAME", default_value = "predicted", value_parser = for_a_clone)]
    policy: PolicyChoice,
    /// Read free frames from the file, too, whatever those hold
    #[arg(long)]
    fetch_free: bool,
    /// Leave the VM paused
    #[arg(long)]
    paused: bool,
    /// Longest wait for the socket, and for each answer of cloud-hypervisor
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = some_seconds)]
    timeout: Duration,
    /// Leave a VMM alone whose pages can no longer be delivered: it ends the VM itself, and the
    /// guest may read zeros for an instant before
    #[arg(long)]
    keep_vmm: bool,
    /// Print events as JSON objects, each on a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        Files::new().reads(SnapshotFolder::new(&self.folder).all()).reads(&self.colors)
    }

    /// Serves until the VM has all of its memory, or has ended.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let folder = SnapshotFolder::new(&self.folder);
        let (config, state) = (read(&folder.config)?, read(&folder.state)?);
        let layout = LayoutArgs { layout: Some(folder.layout.clone()), format: ImageFormat::Auto };
        let template = Template::of(
            layout.open(&folder.memory)?,
            &TemplateArgs {
                memory: &folder.memory,
                kept: beside(&folder.memory),
                colors: self.colors.as_deref(),
                policy: &self.policy,
                fetch_free: self.fetch_free,
            },
        )?;
        let serving = Event::serving(self, &template);
        print_line(if self.json { json(&serving) } else { serving.text() })?;
        let start = Instant::now();
        // A signal until the guest runs ends the process, and the VMM finds the connection closed.
        let keeps_vmm = self.keep_vmm;
        let (sender, running) = channel();
        let before_run = move |process: u32, pidfd: BorrowedFd<'_>| {
            let armed = if keeps_vmm { Ok(None) } else { arm_end(process, pidfd) };
            let _ = sender.send((armed, Stop::take_every()));
        };
        let session = self.connect(&template, config, state, before_run)?;
        let (armed, stop) = running.recv().map_err(Failure::new)?;
        let armed = armed.map_err(Failure::new)?;
        self.tell(&Event::started(&session, start.elapsed()));

        let session = Arc::new(session);
        let own = Arc::clone(&session);
        let waiting = std::thread::Builder::new().name("vm".to_owned()).spawn(move || own.wait());
        let waiting = waiting
            .map_err(|error| Failure::new(format_args!("the system gives no thread: {error}")))?;
        let ended = self.wait(&stop, &session, waiting);
        if let (Ok(_), Some(armed)) = (&ended, armed) {
            armed.disarm();
        }
        let statistics = session.engine().statistics();
        self.tell(&Event::ended(&ended, start.elapsed(), &statistics));
        ended.map(drop).map_err(Failure::new)
    }

    fn connect(
        &self,
        template: &Template,
        config: Vec<u8>,
        state: Vec<u8>,
        before_run: impl FnOnce(u32, BorrowedFd<'_>) + Send + 'static,
    ) -> Result<Session, Failure> {
        let Template { image, guest, policy, free_frames, .. } = template;
        let source = LocalSource::new(image.clone());
        Session::builder(Arc::clone(&guest.locality), source, config, state)
            .policy(policy.build(&guest.locality, &Trace::default()))
            .options(EngineOptions::default().free_frames(*free_frames))
            .paused(self.paused)
            .timeout(self.timeout)
            .end_vmm(!self.keep_vmm)
            .before_run(before_run)
            .connect(&self.socket)
            .map_err(|error| Failure::new(&error).maybe_hint(hint(&error)))
    }

    /// Waits for the end of the session; a second signal ends it.
    fn wait(
        &self,
        stop: &Stop,
        session: &Session,
        waiting: JoinHandle<Result<Ended, Error>>,
    ) -> Result<Ended, Error> {
        let mut has_come = false;
        while !waiting.is_finished() {
            match stop.signal_within(TICK) {
                Some(Signal::SIGINT) if has_come => session.stop(),
                Some(_) if !has_come => {
                    has_come = true;
                    self.tell(&Event::Waiting {});
                }
                Some(_) | None => {}
            }
        }
        // A panic there would be one of the library's: its threads have ended.
        waiting.join().unwrap_or_else(|_| session.wait())
    }

    /// Prints an event: as a result for programs, as a message for people.
    fn tell(&self, event: &Event) {
        if self.json {
            // A reader that went away must not end the VM.
            let _ = print_line(json(event));
        } else {
            say(event.text());
        }
    }
}

/// What to do about an error.
fn hint(error: &Error) -> Option<&'static str> {
    (error.kind() == ErrorKind::Timeout).then_some(
        "cloud-hypervisor waits at the socket once it is told `ch-remote receive-migration \
         receiver_url=unix:SOCKET,memory_mode=postcopy`",
    )
}
