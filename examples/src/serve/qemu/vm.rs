//! A clone, from the connection to the last page.

use super::parent::Parent;
use super::report::Event;
use super::stream::{Counts, Stream};
use crate::failure::Failure;
use crate::serve::template::Template;
use crate::socket::connect_within;
use kaleidoscope_core::clone::Statistics;
use kaleidoscope_core::clone::{Background, Engine, EngineOptions, EngineParts, LocalSource};
use kaleidoscope_core::prefetch::Access;
use kaleidoscope_core::replay::Trace;
use kaleidoscope_kvm::qemu::PostcopySource;
use parking_lot::Mutex;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often the state of a VM is looked at.
const TICK: Duration = Duration::from_millis(5);

/// How long QEMU may take to answer the first commands.
const ANSWER: Duration = Duration::from_secs(10);

/// How long QEMU may take to say that it has all.
const END: Duration = Duration::from_secs(30);

/// Why a VM has failed after a second signal.
const ABANDONED: &str = "abandoned: the VM cannot run on";

/// What signals have the threads do.
#[derive(Debug, Default)]
pub(super) struct Control {
    fill: AtomicBool,
    abandon: AtomicBool,
    /// Connections, which end when they are abandoned.
    connections: Mutex<Vec<UnixStream>>,
}

impl Control {
    /// Send all that is missing.
    pub(super) fn fill(&self) {
        self.fill.store(true, Ordering::Release);
    }

    pub(super) fn is_filling(&self) -> bool {
        self.fill.load(Ordering::Acquire)
    }

    /// Send no more. What waits for QEMU waits no longer.
    pub(super) fn abandon(&self) {
        self.abandon.store(true, Ordering::Release);
        for connection in &*self.connections.lock() {
            // Fails only if QEMU has ended it.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Has a VM's connection end when it is abandoned.
    pub(super) fn watch(&self, vm: &Vm) -> std::io::Result<()> {
        self.connections.lock().push(vm.connection.try_clone()?);
        Ok(())
    }

    fn is_abandoned(&self) -> bool {
        self.abandon.load(Ordering::Acquire)
    }
}

/// A QEMU that waits for its memory.
pub(super) struct Vm {
    number: u32,
    connection: UnixStream,
}

/// How serving a VM has ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Why it failed.
    pub(super) error: Option<String>,
    /// Whether QEMU has all of the memory.
    pub(super) is_complete: bool,
    pub(super) counts: Counts,
    /// Until all that was missing was sent because of a signal.
    pub(super) statistics: Statistics,
    pub(super) ran: Duration,
}

impl Vm {
    /// Connects to a QEMU that listens within `wait`.
    pub(super) fn connect(number: u32, socket: &Path, wait: Duration) -> Result<Self, Failure> {
        let connection = connect_within(socket, wait, &mut || true).map_err(|error| {
            Failure::at(socket, format_args!("cannot connect: {error}")).hint(
                "QEMU listens there after -incoming unix:PATH, or `migrate-incoming` with this \
                 URI; --timeout allows it more time",
            )
        })?;
        Ok(Self { number, connection })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Serves the VM to its end.
    pub(super) fn serve(self, parent: &Parent, rate: Option<u32>, control: &Control) -> Event {
        let number = self.number;
        match self.run(parent, rate, control) {
            Ok(outcome) => Event::ended(number, &outcome),
            Err(_) if control.is_abandoned() => Event::failed(number, ABANDONED),
            Err(error) => Event::failed(number, &error),
        }
    }

    fn run(self, parent: &Parent, rate: Option<u32>, control: &Control) -> Result<Outcome, String> {
        let start = Instant::now();
        let Parent { memory, saved, ram } = parent;
        let Template { image, guest, policy, free_frames, .. } = memory;
        let mut opening = Vec::new();
        let source = PostcopySource::start(saved, ram, &mut opening).map_err(|e| e.to_string())?;
        let refused = "QEMU refused the migration, and says why in its own messages: it needs the \
             arguments of the captured VM, the capability postcopy-ram, 4 KiB pages, and the right \
             to use userfaultfd";
        let stream = Stream::open(self.connection, source, ram, &opening)
            .map_err(|error| format!("{refused} ({error})"))?;
        drop(opening);
        if !stream.is_accepted_within(ANSWER).map_err(|error| error.to_string())? {
            return Err(refused.to_owned());
        }
        let stream = Arc::new(stream);
        let background = match rate {
            None => Background::Full,
            Some(0) => Background::Off,
            Some(pages_per_second) => Background::Throttled { pages_per_second },
        };
        let options = EngineOptions::default().free_frames(*free_frames).background(background);
        let policy = policy.build(&guest.locality, &Trace::default());
        let pages = Arc::new(LocalSource::new(image.clone()));
        let locality = Arc::clone(&guest.locality);
        let parts = EngineParts::new(locality, policy, pages, Arc::clone(&stream) as _)
            .queue(Some(Arc::clone(&stream) as _));
        let engine = Engine::start(parts, options).map_err(|error| error.to_string())?;
        let mut before = None;
        let (error, is_complete) = std::thread::scope(|scope| {
            let faults = scope.spawn(|| engine.serve());
            let ended = finished(&engine, &stream, control, &mut before);
            engine.stop();
            // A panic there has stopped the engine.
            let _ = faults.join();
            ended
        });
        // What fails then does so because its connection was shut down.
        let is_abandoned = control.is_abandoned() && !is_complete;
        Ok(Outcome {
            error: if is_abandoned { Some(ABANDONED.to_owned()) } else { error },
            is_complete,
            counts: stream.counts(),
            statistics: before.unwrap_or_else(|| engine.statistics()),
            ran: start.elapsed(),
        })
    }
}

fn failed(error: &dyn std::fmt::Display) -> (Option<String>, bool) {
    (Some(error.to_string()), false)
}

/// The result for a QEMU that has ended before it had all of its memory: a failure unless the guest
/// ran.
fn ended(stream: &Stream) -> (Option<String>, bool) {
    match (stream.is_loaded(), stream.end()) {
        (Err(error), _) => failed(&error),
        (_, Some(value)) if value != 0 => failed(&format!("QEMU failed with {value}")),
        (Ok(false), _) => failed(&"QEMU ended before the guest ran: its own messages say why"),
        (Ok(true), _) => (None, false),
    }
}

/// Waits until QEMU has all of the memory, or the VM ends: why it failed, and whether QEMU has all.
/// `before` gets the statistics before a signal had all missing pages sent.
fn finished(
    engine: &Engine,
    stream: &Stream,
    control: &Control,
    before: &mut Option<Statistics>,
) -> (Option<String>, bool) {
    loop {
        if control.is_abandoned() {
            return failed(&ABANDONED);
        }
        if engine.has_ended() {
            return ended(stream);
        }
        if let Some(why) = engine.stopped() {
            return failed(&why);
        }
        // Pages of the fill may still be on their way.
        if engine.is_filled() && engine.is_whole() {
            break;
        }
        if control.is_filling() {
            before.get_or_insert_with(|| engine.statistics());
            // Free frames of which nothing is needed are left to the end.
            let missing = stream.missing();
            let error = missing.into_iter().find_map(|frame| {
                if control.is_abandoned() {
                    return Some(ABANDONED.to_owned());
                }
                engine.fault(frame, Access::Unknown).err().map(|error| error.to_string())
            });
            if let Some(error) = error {
                return if engine.has_ended() { ended(stream) } else { failed(&error) };
            }
            if engine.is_whole() {
                break;
            }
        }
        sleep(TICK);
    }
    // Frames that are missing now are free, and nothing of them is needed.
    let last = stream.finish().and_then(|()| stream.end_within(END));
    match last {
        Ok(Some(0)) => (None, true),
        Ok(Some(value)) => failed(&format!("QEMU failed with {value} at the end")),
        Ok(None) => failed(&"QEMU does not say that it has all of its memory"),
        Err(error) if error.is_end() => ended(stream),
        Err(error) => failed(&error),
    }
}
