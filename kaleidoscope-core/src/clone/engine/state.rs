//! The state of a clone that all parts of its engine share.

use super::super::options::{EngineOptions, FreeFrames, Stopped};
use super::super::ports::Clock;
use super::super::retry::Retry;
use super::super::statistics::{Count, Counters};
use super::accounts::Accounts;
use super::frame_states::{Flags, FrameStates};
use super::staging::StagingBuffer;
use super::waiters::Waiters;
use crate::addr::FrameIndex;
use crate::color::Color;
use crate::prefetch::LocalityOrder;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Longest wait of a thread before it checks whether the clone was stopped.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(20);

/// The lowest part of an engine: the parts above change this state, and wait for its changes.
pub(super) struct CloneState {
    pub(super) locality: Arc<LocalityOrder>,
    /// With [`FreeFrames::Zero`] or [`FreeFrames::Fetch`], as decided when the engine started.
    pub(super) options: EngineOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) frames: FrameStates,
    /// Prefetched pages that are not in the clone's memory.
    pub(super) staging: Mutex<StagingBuffer>,
    pub(super) accounts: Accounts,
    pub(super) counters: Counters,
    pub(super) waiters: Waiters,
    /// Frames in flight that were requested ahead of any touch.
    speculative: AtomicUsize,
    stopped: AtomicBool,
    stop_reason: OnceLock<Stopped>,
}

impl CloneState {
    pub(super) fn new(
        locality: Arc<LocalityOrder>,
        options: EngineOptions,
        clock: Arc<dyn Clock>,
        accounts: Accounts,
    ) -> Self {
        Self {
            frames: FrameStates::new(locality.frames()),
            locality,
            options,
            clock,
            staging: Mutex::new(StagingBuffer::new(options.staged)),
            accounts,
            counters: Counters::new(),
            waiters: Waiters::new(),
            speculative: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            stop_reason: OnceLock::new(),
        }
    }

    /// Stops the clone. Keeps the first reason, and returns it.
    pub(super) fn fail(&self, why: Stopped) -> Stopped {
        let why = self.stop_reason.get_or_init(|| why).clone();
        if !self.stopped.swap(true, Ordering::AcqRel) {
            self.waiters.wake();
            self.waiters.kick();
        }
        why
    }

    /// Why the clone was stopped, if it was.
    pub(super) fn stop_reason(&self) -> Option<&Stopped> {
        self.stop_reason.get()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// # Errors
    /// The reason when the clone was stopped.
    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.is_stopped() {
            return Err(self.stop_reason().cloned().unwrap_or(Stopped::Cancelled));
        }
        Ok(())
    }

    pub(super) fn color(&self, frame: FrameIndex) -> Color {
        self.locality.color(frame)
    }

    pub(super) fn count(&self, frame: FrameIndex, count: Count) {
        self.counters.add(self.color(frame), count);
    }

    /// Whether a frame may be filled with zeros on this host, because it was free at the snapshot.
    pub(super) fn is_free(&self, frame: FrameIndex) -> bool {
        self.options.free_frames == FreeFrames::Zero && self.locality.is_free(frame)
    }

    /// Number of frames in flight that were requested ahead of any touch.
    pub(super) fn speculative(&self) -> usize {
        self.speculative.load(Ordering::Acquire)
    }

    /// Adds frames that are about to be requested ahead of any touch.
    pub(super) fn add_speculative(&self, frames: usize) {
        self.speculative.fetch_add(frames, Ordering::AcqRel);
    }

    /// A frame is no longer in flight. Does nothing if a touch requested it.
    pub(super) fn end_speculative(&self, flags: Flags) {
        if flags.is_speculative() {
            self.speculative.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A frame left the installing phase, or is no longer requested: wakes the threads that wait
    /// for it.
    pub(super) fn wake_if_wanted(&self, flags: Flags) {
        if flags.wanted {
            self.waiters.wake();
        }
    }

    /// Pauses before another attempt at a frame.
    ///
    /// # Errors
    /// [`Stopped::Timeout`] when the attempts took too long.
    pub(super) fn pause(&self, frame: FrameIndex, retry: &mut Retry) -> Result<(), Stopped> {
        if retry.pause(&*self.clock) {
            return Ok(());
        }
        Err(Stopped::Timeout { frame, timeout: self.options.timeout })
    }

    /// Pauses before a port is called again. The pauses grow while the port returns nothing without
    /// waiting, so that the loop does not keep a processor busy. The caller checks when to stop.
    pub(super) fn back_off(&self, has_waited: bool, idle: &mut Retry) {
        if has_waited {
            idle.reset();
        } else {
            // `idle` is endless, so `pause` always returns `true`.
            let _ = idle.pause(&*self.clock);
        }
    }
}
