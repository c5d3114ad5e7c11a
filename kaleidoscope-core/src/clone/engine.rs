//! The engine: faults and plans in, pages into the clone's memory.
//!
//! ```text
//!  fault:  claim the frame ─► ask the source, urgently ─► ask the policy ─► ask for what it plans ─► receive until it is here
//!  stream: what was planned, then what the policy has for idle times, then everything, a bounded number on their way
//!  page:   claim its placing ─► place (or stage) ─► wake who waits
//! ```
//!
//! The work is done by the threads that fault, and by one thread per clone that streams. There are
//! four locks, never held while waiting for anything: the *gate* (shared by all that place,
//! exclusive while events of the memory are read), the *scheduler* (policy, plan and queue), the
//! *staging* and the waiters' own. They are taken in this order.

use super::granule::Granules;
use super::memory::Memory;
use super::options::{EngineOptions, EngineParts, Feedback, FreeFrames, Stopped};
use super::ports::{Clock, FaultQueue, LocalCache, PageInstaller, PageSource};
use super::scheduler::PrefetchScheduler;
use super::staging::StagingBuffer;
use super::states::{FrameStates, Phase};
use super::statistics::{Count, Counters, Statistics};
use super::waiters::Waiters;
use crate::addr::FrameIndex;
use crate::alloc::{ByColor, FootprintSample, Pressure};
use crate::color::Color;
use crate::prefetch::{Access, LocalityOrder};
use crate::service::{self, Panicked};
use crate::sync::{AtomicBool, AtomicUsize, Mutex, Ordering, RwLock};
use std::collections::VecDeque;
use std::fmt;
// Nothing is synchronized through an `AtomicU32` here: a model checker need not try its
// interleavings.
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest wait after which a thread looks whether it should stop.
pub(super) const SLICE: Duration = Duration::from_millis(20);

/// Fills one clone's memory. Ends with the clone: dropping it stops what it does.
///
/// ```
/// use kaleidoscope_core::addr::FrameIndex;
/// use kaleidoscope_core::clone::ports::{InstallError, Installed, PageInstaller, SystemClock};
/// use kaleidoscope_core::clone::{Engine, EngineOptions, EngineParts, LocalSource};
/// use kaleidoscope_core::color::ColorMap;
/// use kaleidoscope_core::memory::{MemoryLayout, Page, VecMemory, ZERO_PAGE};
/// use kaleidoscope_core::prefetch::{Access, LocalityOrder, predicted};
/// use std::sync::{Arc, OnceLock};
///
/// /// A clone's memory: 1 MiB.
/// struct Ram([OnceLock<Box<Page>>; 256]);
///
/// impl PageInstaller for Ram {
///     fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
///         let slot = self.0.get(frame.as_usize()).ok_or_else(|| InstallError::new("no RAM"))?;
///         match slot.set(Box::new(*page)) {
///             Ok(()) => Ok(Installed::Installed),
///             Err(_) => Ok(Installed::AlreadyPresent),
///         }
///     }
///
///     fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
///         self.install(frame, &ZERO_PAGE)
///     }
///
///     fn wake(&self, _: FrameIndex) -> Result<(), InstallError> {
///         Ok(()) // No thread sleeps in this memory.
///     }
/// }
///
/// let layout = MemoryLayout::contiguous(1 << 20)?;
/// let parent = VecMemory::from_bytes(layout.clone(), vec![7; 1 << 20]);
/// let locality: Arc<LocalityOrder> = ColorMap::unknown(layout).into();
/// let ram = Arc::new(Ram(std::array::from_fn(|_| OnceLock::new())));
/// let parts = EngineParts {
///     policy: predicted(&locality),
///     locality,
///     source: Arc::new(LocalSource::new(Arc::new(parent))),
///     installer: Arc::clone(&ram) as _,
///     queue: None, // Faults come by a call.
///     clock: Arc::new(SystemClock::new()),
///     reservation: None,
///     local_cache: None,
/// };
/// let engine = Engine::start(parts, EngineOptions::default())?;
/// engine.fault(FrameIndex(3), Access::Read)?; // Returns when the page is in memory.
/// assert!(ram.0[3].get().is_some_and(|page| **page == [7; 4096]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Engine {
    inner: Arc<Inner>,
    streamer: Option<JoinHandle<()>>,
}

/// What the engine's threads share.
pub(super) struct Inner {
    pub(super) locality: Arc<LocalityOrder>,
    pub(super) source: Arc<dyn PageSource>,
    pub(super) installer: Arc<dyn PageInstaller>,
    pub(super) queue: Option<Arc<dyn FaultQueue>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) local_cache: Option<Arc<dyn LocalCache>>,
    pub(super) options: EngineOptions,
    pub(super) states: FrameStates,
    pub(super) granules: Granules,
    pub(super) waiters: Waiters,
    /// Inner while a frame is placed, exclusive while events are read: a frame that the guest gave
    /// back must not be filled with the parent's bytes between the giving back and the
    /// engine's taking note of it.
    pub(super) gate: RwLock<()>,
    pub(super) scheduler: Mutex<PrefetchScheduler>,
    pub(super) staging: Mutex<StagingBuffer>,
    pub(super) counters: Counters,
    pub(super) memory: Memory,
    /// Where giving back prefetched frames goes on.
    pub(super) reclaimed_to: AtomicU32,
    /// Frames on their way that nobody has touched.
    pub(super) ahead: AtomicUsize,
    /// Faults that were read while somebody was busy with something else.
    pub(super) deferred: Mutex<VecDeque<(FrameIndex, Access)>>,
    /// The clone has ended by itself.
    pub(super) closed: AtomicBool,
    pub(super) stopped: AtomicBool,
    pub(super) why: OnceLock<Stopped>,
    /// Everything that can be fetched is there.
    pub(super) filled: AtomicBool,
}

impl Engine {
    /// Starts a clone: from here on faults are answered. Takes no time in proportion to the clone's
    /// memory, but for what of it is [shown](PageInstaller::shown) from the start. Should one
    /// of its parts panic, the clone is stopped ([`Stopped::Panicked`]).
    ///
    /// # Errors
    /// [`std::io::Error`] when the system gives no thread.
    pub fn start(parts: EngineParts, options: EngineOptions) -> std::io::Result<Self> {
        let inner = Arc::new(Inner::new(parts, options));
        inner.take_note_of_shown();
        let pressed = Arc::downgrade(&inner);
        inner.memory.on_pressure(move |level| {
            if let Some(inner) = pressed.upgrade() {
                inner.pressed(level);
            }
        });
        let (streaming, failing) = (Arc::clone(&inner), Arc::clone(&inner));
        let panicked = move |error: Panicked| drop(failing.fail(error.into()));
        let stream = move || streaming.stream();
        let streamer = service::spawn("kscope-stream", 256 << 10, stream, panicked)?;
        Ok(Self { inner, streamer: Some(streamer) })
    }

    /// A vCPU touched a frame that is not there; returns when it is. Any number of threads may call
    /// it at once.
    ///
    /// # Errors
    /// [`Stopped`] when the frame will never come. The clone is stopped then, and every thread gets
    /// the same answer.
    pub fn fault(&self, frame: FrameIndex, access: Access) -> Result<(), Stopped> {
        self.inner.contained("answering a fault", |inner| inner.fault(frame, access))
    }

    /// The guest gave frames back: they read as zeros from now on. For embedders without a
    /// [`FaultQueue`]; the caller makes sure that the frames are empty, and that nobody touches
    /// them, until this returns.
    ///
    /// # Errors
    /// [`Stopped`] when the clone was stopped, or for frames that it does not have.
    pub fn removed(&self, frames: std::ops::Range<u32>) -> Result<(), Stopped> {
        let result = self.inner.contained("taking note of frames given back", |inner| {
            let _gate = inner.gate.write();
            inner.removed(frames)
        });
        self.inner.waiters.wake();
        result
    }

    /// One fault thread: answers the events of the clone's memory until it ends. Run it on as many
    /// threads as faults are to be answered at once.
    ///
    /// # Errors
    /// [`Stopped`] when the clone was stopped.
    pub fn serve(&self) -> Result<(), Stopped> {
        self.inner.contained("a thread that answers faults", Inner::serve)
    }

    /// Gives memory back: forgets plans, drops staged pages, and takes back prefetched frames that
    /// the clone has not touched where its memory can tell, until `wanted` frames are free
    /// again. Returns how many are.
    ///
    /// # Errors
    /// [`Stopped`] when the clone was stopped.
    pub fn reclaim(&self, wanted: u32) -> Result<u32, Stopped> {
        self.inner.contained("giving memory back", |inner| inner.reclaim(wanted))
    }

    /// Stops the clone: threads that wait for pages get [`Stopped::Cancelled`], and nothing more is
    /// fetched.
    pub fn stop(&self) {
        self.inner.fail(Stopped::Cancelled);
    }

    /// Why the clone was stopped, if it was.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        self.inner.why.get().cloned()
    }

    /// Whether the VM has ended by itself, as its memory told.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.inner.closed.load(Ordering::Acquire)
            || matches!(self.inner.why.get(), Some(Stopped::Ended))
    }

    /// Whether everything that can be fetched is there; only with background filling.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.inner.filled.load(Ordering::Acquire)
    }

    /// Whether the clone's memory has every frame but those that are zeros when they are touched:
    /// it needs nobody any more. Looks at all frames.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let frames = (0..self.inner.locality.frames()).map(FrameIndex);
        let mut missing = frames.filter(|frame| match self.inner.states.phase(*frame) {
            Phase::Present | Phase::Shown | Phase::Removed | Phase::Refilled => false,
            Phase::Absent => !self.inner.is_free(*frame),
            // Staged is with us, not with the clone; what is unavailable is an error when it is
            // touched.
            Phase::Queued
            | Phase::Requested
            | Phase::Placing
            | Phase::Staged
            | Phase::Unavailable => true,
        });
        self.stopped().is_none() && missing.next().is_none()
    }

    /// Whether the guest has given frames back, which read as zeros since, whatever the parent has
    /// there. Looks at all frames.
    #[must_use]
    pub fn has_given_back(&self) -> bool {
        let frames = (0..self.inner.locality.frames()).map(FrameIndex);
        let mut phases = frames.map(|frame| self.inner.states.phase(frame));
        phases.any(|phase| matches!(phase, Phase::Removed | Phase::Refilled))
    }

    /// Counters at this moment.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let sampled = match self.inner.options.feedback {
            Feedback::Off | Feedback::Sampled { one_in: 0 } => 0.0,
            Feedback::Staged => 1.0,
            Feedback::Sampled { one_in } => 1.0 / f64::from(one_in),
        };
        let mut statistics = self.inner.counters.read(self.inner.locality.frames(), sampled);
        let resident = self.footprint();
        for (color, counts) in &mut statistics.by_color {
            counts.resident = u64::from(resident.get(*color));
        }
        statistics
    }

    /// Frames in the clone's memory by color, now.
    #[must_use]
    pub fn footprint(&self) -> ByColor {
        self.inner.memory.footprint()
    }

    /// Frames in the clone's memory by color, over time since the clock's start.
    #[must_use]
    pub fn footprint_history(&self) -> Vec<FootprintSample> {
        self.inner.memory.history(self.inner.clock.now())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        if let Some(streamer) = self.streamer.take() {
            // A panic there has stopped the clone.
            let _ = streamer.join();
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("stopped", &self.stopped()).finish_non_exhaustive()
    }
}

impl Inner {
    /// An engine without its streaming thread.
    pub(super) fn new(parts: EngineParts, options: EngineOptions) -> Self {
        let free_frames = options.free_frames.allowed_by(parts.locality.map());
        let options = EngineOptions { free_frames, ..options };
        let scheduler = PrefetchScheduler::new(parts.policy, &parts.locality, &options);
        Self {
            states: FrameStates::new(parts.locality.frames()),
            granules: Granules::new(options.granule, parts.locality.frames()),
            locality: parts.locality,
            source: parts.source,
            installer: parts.installer,
            queue: parts.queue,
            clock: parts.clock,
            local_cache: parts.local_cache,
            options,
            waiters: Waiters::new(),
            gate: RwLock::new(()),
            scheduler: Mutex::new(scheduler),
            staging: Mutex::new(StagingBuffer::new(options.staged)),
            counters: Counters::new(),
            memory: Memory::new(parts.reservation),
            reclaimed_to: AtomicU32::new(0),
            ahead: AtomicUsize::new(0),
            deferred: Mutex::new(VecDeque::new()),
            closed: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            why: OnceLock::new(),
            filled: AtomicBool::new(false),
        }
    }

    /// Frames that are in the clone's memory already are neither planned nor asked for.
    fn take_note_of_shown(&self) {
        for frame in self.installer.shown().into_iter().flatten().map(FrameIndex) {
            if self.states.show(frame) {
                self.counters.add(self.color(frame), Count::LocalCache);
            }
        }
    }

    /// Stops the clone for a reason; the first one counts, and is returned.
    pub(super) fn fail(&self, why: Stopped) -> Stopped {
        let why = self.why.get_or_init(|| why).clone();
        if !self.stopped.swap(true, Ordering::AcqRel) {
            self.waiters.wake();
            self.waiters.kick();
        }
        why
    }

    /// Does something for whoever called the engine. The clone is stopped when that fails, or when
    /// a policy, a source or the clone's memory panics: the frame that it was about would be on
    /// its way for ever.
    fn contained<T>(
        &self,
        what: &str,
        work: impl FnOnce(&Self) -> Result<T, Stopped>,
    ) -> Result<T, Stopped> {
        let done = service::contained(what, || work(self));
        done.map_err(Stopped::from).and_then(|done| done).map_err(|error| self.fail(error))
    }

    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(self.why.get().cloned().unwrap_or(Stopped::Cancelled));
        }
        Ok(())
    }

    /// The host's memory has become scarcer, or less scarce.
    fn pressed(&self, level: Pressure) {
        if level >= Pressure::Reclaim {
            self.memory.press();
        }
        self.waiters.kick();
    }

    pub(super) fn color(&self, frame: FrameIndex) -> Color {
        self.locality.color(frame)
    }

    /// Whether a frame may be filled with zeros here because nobody needs its bytes.
    pub(super) fn is_free(&self, frame: FrameIndex) -> bool {
        self.options.free_frames == FreeFrames::Zero && self.locality.is_free(frame)
    }
}
