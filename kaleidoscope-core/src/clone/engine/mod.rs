//! The engine: faults and plans in, pages into the clone's memory.
//!
//! Each part owns its state and calls only parts below it, so that a fault can be followed by
//! reading down:
//!
//! ```text
//!  Engine         what embedders call
//!  Core           the threads' loops: serve, stream, reclaim
//!  FaultPath      claim the frame ─► request ─► policy ─► wait              (fault, granule_fault)
//!  Fetcher        requests, receiving                 beside it: PrefetchScheduler, BackgroundFill
//!  Installer      pages into memory, zeros, staging, eviction               (install)
//!  Events         events of the memory, and the gate
//!  CloneState     the state of every frame, accounts, counters, waiting threads
//! ```
//!
//! The work is done by the threads that fault, and by one thread per clone that streams. There are
//! four locks, never held while waiting for anything: the *gate* (shared while a page is installed,
//! exclusive while events of the memory are read), the *scheduler* (policy, plan and queue), the
//! *staging buffer* and the waiters' own. They are taken in this order.

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

/// Fills one clone's memory. Ends with the clone: dropping it stops what it does.
pub struct Engine {
    core: Arc<Core>,
    streamer: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts a clone: from here on faults are answered. Takes no time in proportion to the clone's
    /// memory, but for what of it is [shown](PageInstaller::shown) from the start. Should one
    /// of its parts panic, the clone is stopped ([`Stopped::Panicked`]).
    ///
    /// # Errors
    /// [`std::io::Error`] when the system gives no thread.
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

    /// A vCPU touched a frame that is not there; returns when it is. Any number of threads may call
    /// it at once.
    ///
    /// # Errors
    /// [`Stopped`] when the frame will never come. The clone is stopped then, and every thread gets
    /// the same answer.
    pub fn fault(&self, frame: FrameIndex, access: Access) -> Result<(), Stopped> {
        self.core.contained("answering a fault", |core| core.faults.answer(frame, access))
    }

    /// The guest gave frames back: they read as zeros from now on. For embedders without a
    /// [`FaultQueue`]; the caller makes sure that the frames are empty, and that nobody touches
    /// them, until this returns.
    ///
    /// # Errors
    /// [`Stopped`] when the clone was stopped, or for frames that it does not have.
    pub fn removed(&self, frames: std::ops::Range<u32>) -> Result<(), Stopped> {
        let result = self.core.contained("recording frames given back", |core| {
            let _gate = core.events().close_gate();
            core.events().remove(frames)
        });
        self.core.state().waiters.wake();
        result
    }

    /// One fault thread: answers the events of the clone's memory until it ends. Run it on as many
    /// threads as faults are to be answered at once.
    ///
    /// # Errors
    /// [`Stopped`] when the clone was stopped.
    pub fn serve(&self) -> Result<(), Stopped> {
        self.core.contained("a thread that answers faults", Core::serve)
    }

    /// Gives memory back: forgets plans, drops staged pages, and takes back prefetched frames that
    /// the clone has not touched where its memory can tell, until `wanted` frames are free
    /// again. Returns how many are.
    ///
    /// # Errors
    /// [`Stopped`] when the clone was stopped.
    pub fn reclaim(&self, wanted: u32) -> Result<u32, Stopped> {
        self.core.contained("giving memory back", |core| core.reclaim(wanted))
    }

    /// Stops the clone: threads that wait for pages get [`Stopped::Cancelled`], and nothing more is
    /// fetched.
    pub fn stop(&self) {
        self.core.state().fail(Stopped::Cancelled);
    }

    /// Why the clone was stopped, if it was.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        self.core.state().stop_reason().cloned()
    }

    /// Whether the VM has ended by itself, as its memory told.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let stopped = self.core.state().stop_reason();
        self.core.events().is_closed() || matches!(stopped, Some(Stopped::Ended))
    }

    /// Whether everything that can be fetched is there; only with background filling.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.core.is_filled()
    }

    /// Whether the clone's memory has every frame but those that are zeros when they are touched:
    /// it needs nobody any more. Looks at all frames.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let state = self.core.state();
        let frames = (0..state.locality.frames()).map(FrameIndex);
        let mut missing = frames.filter(|frame| match state.frames.phase(*frame) {
            Phase::Present | Phase::Mapped | Phase::Removed | Phase::Refilled => false,
            Phase::Absent => !state.is_free(*frame),
            // Staged is with us, not with the clone; what is unavailable is an error when it is
            // touched.
            Phase::Queued
            | Phase::Requested
            | Phase::Installing
            | Phase::Staged
            | Phase::Unavailable => true,
        });
        self.stopped().is_none() && missing.next().is_none()
    }

    /// Whether the guest has given frames back, which read as zeros since, whatever the parent has
    /// there. Looks at all frames.
    #[must_use]
    pub fn has_given_back(&self) -> bool {
        let state = self.core.state();
        let frames = (0..state.locality.frames()).map(FrameIndex);
        let mut phases = frames.map(|frame| state.frames.phase(frame));
        phases.any(|phase| matches!(phase, Phase::Removed | Phase::Refilled))
    }

    /// Counters at this moment.
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

    /// Frames in the clone's memory by color, now.
    #[must_use]
    pub fn footprint(&self) -> ByColor {
        self.core.state().accounts.footprint()
    }

    /// Frames in the clone's memory by color, over time since the clock's start.
    #[must_use]
    pub fn footprint_history(&self) -> Vec<FootprintSample> {
        self.core.state().accounts.history(self.core.state().clock.now())
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
