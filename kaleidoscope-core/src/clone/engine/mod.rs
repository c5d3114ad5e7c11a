//! The engine: answers faults, and prefetches pages into the clone's memory.
//!
//! Each part owns the part below it and calls only parts below it, so that a reader can follow a
//! fault from top to bottom:
//!
//! ```text
//!  part         does                                                   file
//!  Engine       the public interface; starts the streaming thread      mod
//!  Core         the threads' loops: serve, stream, reclaim             core, stream, reclaim
//!  FaultPath    claims the frame, requests it, runs the policy, waits  fault, granule_fault
//!  Fetcher      requests frames and receives pages                     fetcher
//!  Installer    installs, zeroes, stages and evicts pages              install
//!  Events       reads the memory's events under the gate               events
//!  CloneState   frame states, accounts, counters, waiting threads      state
//! ```
//!
//! [`PrefetchScheduler`](scheduler::PrefetchScheduler) lies beside this column: the fetcher takes
//! plans from it, and the installer reports to it which prefetched frames were used.
//!
//! ```text
//!  a fault:  Engine::fault ─► Core ─► FaultPath::answer ─► Fetcher::request ─► PageSource::request
//!  a page:   Fetcher::receive ─► Installer::deliver ─► Installer::install
//!              ▲ PageSource::receive                     └─► PageInstaller::install, zero
//! ```
//!
//! Faults are answered on the threads that call the engine. Of the threads that wait for pages, one
//! receives for all. One further thread per clone streams prefetched pages.
//!
//! Four locks nest. They are taken in this order, and never held while waiting: the *gate* (shared
//! while a page is installed, exclusive while events are read), the *scheduler* (policy, plan and
//! queue), the *staging buffer*, and the lock of the waiting threads.

mod accounts;
mod background_fill;
mod core;
mod events;
mod fault;
mod fetcher;
mod frame_states;
mod granule_fault;
mod granules;
mod install;
#[cfg(all(test, loom))]
mod model;
mod reclaim;
mod scheduler;
mod staging;
mod state;
mod stream;
#[cfg(all(test, not(loom)))]
mod tests;
mod waiters;

use self::core::Core;
use super::options::{EngineOptions, EngineParts, Feedback, Stopped};
use super::statistics::Statistics;
use crate::addr::FrameIndex;
use crate::alloc::{ByColor, FootprintSample};
use crate::prefetch::Access;
use crate::service::{self, Panicked};
use frame_states::Phase;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Fills the memory of one clone. Dropping the engine stops the clone.
///
/// ```
/// use kaleidoscope_core::addr::FrameIndex;
/// use kaleidoscope_core::clone::ports::{InstallError, Installed, PageInstaller};
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
/// let policy = predicted(&locality);
/// let source = Arc::new(LocalSource::new(Arc::new(parent)));
/// // Without a queue: faults come by a call.
/// let parts = EngineParts::new(locality, policy, source, Arc::clone(&ram) as _);
/// let engine = Engine::start(parts, EngineOptions::default())?;
/// engine.fault(FrameIndex(3), Access::Read)?; // Returns when the page is in memory.
/// assert!(ram.0[3].get().is_some_and(|page| **page == [7; 4096]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Engine {
    core: Arc<Core>,
    streamer: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the engine, which answers faults from now on. The time does not depend on the size of
    /// the clone's memory, except for frames that are
    /// [mapped from the start](super::ports::PageInstaller::shown). If a part panics, the clone is
    /// stopped with [`Stopped::Panicked`].
    ///
    /// # Errors
    /// [`std::io::Error`] when the system cannot start a thread.
    pub fn start(parts: EngineParts, options: EngineOptions) -> std::io::Result<Self> {
        let core = Arc::new(Core::new(parts, options));
        core.installer().record_mapped();
        let weak = Arc::downgrade(&core);
        core.state().accounts.on_pressure(move |level| {
            if let Some(core) = weak.upgrade() {
                core.on_pressure(level);
            }
        });
        let (streaming, failing) = (Arc::clone(&core), Arc::clone(&core));
        let panicked = move |error: Panicked| drop(failing.state().fail(error.into()));
        let stream = move || streaming.stream();
        let streamer = service::spawn("kscope-stream", 256 << 10, stream, panicked)?;
        Ok(Self { core, streamer: Some(streamer) })
    }

    /// Answers the fault of a vCPU that touched a missing frame; returns when the frame is
    /// resident. Any number of threads may call it at once.
    ///
    /// # Errors
    /// [`Stopped`] when the frame cannot become resident. The clone is then stopped, and every
    /// thread gets the same error.
    pub fn fault(&self, frame: FrameIndex, access: Access) -> Result<(), Stopped> {
        self.core.contained("answering a fault", |core| core.faults.answer(frame, access))
    }

    /// Records that the guest gave frames back: they read as zeros from now on. For embedders
    /// without a [`FaultQueue`](super::ports::FaultQueue). The caller ensures that the frames are
    /// empty, and that no vCPU touches them until this returns.
    ///
    /// # Errors
    /// [`Stopped`] when the clone was stopped, or when a frame lies past the end of the guest.
    pub fn removed(&self, frames: std::ops::Range<u32>) -> Result<(), Stopped> {
        let result = self.core.contained("recording frames given back", |core| {
            let _gate = core.events().close_gate();
            core.events().remove(frames)
        });
        self.core.state().waiters.wake();
        result
    }

    /// The loop of a fault thread: answers the events of the clone's memory until the VM ends.
    /// Returns at once when the engine has no fault queue. Each thread that runs it answers one
    /// fault at a time.
    ///
    /// # Errors
    /// [`Stopped`] when the clone was stopped.
    pub fn serve(&self) -> Result<(), Stopped> {
        self.core.contained("a thread that answers faults", Core::serve)
    }

    /// Frees up to `wanted` frames: drops plans, then staged pages, then evicts prefetched frames
    /// that the clone has not touched, if its memory can tell. Returns the number of freed frames.
    ///
    /// # Errors
    /// [`Stopped`] when the clone was stopped.
    pub fn reclaim(&self, wanted: u32) -> Result<u32, Stopped> {
        self.core.contained("giving memory back", |core| core.reclaim(wanted))
    }

    /// Stops the clone: threads that wait for pages get [`Stopped::Cancelled`], and no more pages
    /// are fetched.
    pub fn stop(&self) {
        self.core.state().fail(Stopped::Cancelled);
    }

    /// Why the clone was stopped; `None` while it is not.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        self.core.state().stop_reason().cloned()
    }

    /// Whether the clone's memory has reported the end of the VM.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let stopped = self.core.state().stop_reason();
        self.core.events().is_closed() || matches!(stopped, Some(Stopped::Ended))
    }

    /// Whether the background fill has brought every frame; always `false` without one.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.core.is_filled()
    }

    /// Whether the source may disconnect: every frame is resident, or will be filled with zeros on
    /// this host when it is touched. `false` once the clone is stopped. Takes time in proportion to
    /// the number of frames.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let state = self.core.state();
        let frames = (0..state.locality.frames()).map(FrameIndex);
        let mut missing = frames.filter(|frame| match state.frames.phase(*frame) {
            Phase::Present | Phase::Mapped | Phase::Removed | Phase::Refilled => false,
            Phase::Absent => !state.is_free(*frame),
            // A staged page belongs to the engine and is lost with it. An unavailable frame stops
            // the clone when it is touched.
            Phase::Queued
            | Phase::Requested
            | Phase::Installing
            | Phase::Staged
            | Phase::Unavailable => true,
        });
        self.stopped().is_none() && missing.next().is_none()
    }

    /// Whether the guest has given frames back. Such frames read as zeros, and so differ from the
    /// snapshot. Takes time in proportion to the number of frames.
    #[must_use]
    pub fn has_given_back(&self) -> bool {
        let state = self.core.state();
        let frames = (0..state.locality.frames()).map(FrameIndex);
        let mut phases = frames.map(|frame| state.frames.phase(frame));
        phases.any(|phase| matches!(phase, Phase::Removed | Phase::Refilled))
    }

    /// The clone's counters now.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let state = self.core.state();
        let sampled = match state.options.feedback {
            Feedback::Off | Feedback::Sampled { one_in: 0 } => 0.0,
            Feedback::Staged => 1.0,
            Feedback::Sampled { one_in } => 1.0 / f64::from(one_in),
        };
        let mut statistics = state.counters.read(state.locality.frames(), sampled);
        let resident = self.footprint();
        for (color, counts) in &mut statistics.by_color {
            counts.resident = u64::from(resident.get(*color));
        }
        statistics
    }

    /// Resident frames by color, now, without frames that are mapped from the start.
    #[must_use]
    pub fn footprint(&self) -> ByColor {
        self.core.state().accounts.footprint()
    }

    /// Resident frames by color over time, counted from the start of the engine's clock.
    #[must_use]
    pub fn footprint_history(&self) -> Vec<FootprintSample> {
        self.core.state().accounts.history(self.core.state().clock.now())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        if let Some(streamer) = self.streamer.take() {
            // A panic of the streaming thread has already stopped the clone.
            let _ = streamer.join();
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("stopped", &self.stopped()).finish_non_exhaustive()
    }
}
