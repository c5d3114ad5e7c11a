//! What all parts of an engine know of their clone.

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

/// Longest wait after which a thread looks whether the clone was stopped.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(20);

/// State without behavior of its own: the parts above change it and wait for its changes.
pub(super) struct CloneState {
    pub(super) locality: Arc<LocalityOrder>,
    pub(super) options: EngineOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) frames: FrameStates,
    /// Prefetched pages beside the clone's memory.
    pub(super) staging: Mutex<StagingBuffer>,
    pub(super) accounts: Accounts,
    pub(super) counters: Counters,
    pub(super) waiters: Waiters,
    /// Frames that were requested ahead of any touch and have not arrived.
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
        let free_frames = options.free_frames.allowed_by(locality.map());
        Self {
            frames: FrameStates::new(locality.frames()),
            locality,
            options: EngineOptions { free_frames, ..options },
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

    /// Stops the clone. The first reason is kept and returned.
    pub(super) fn fail(&self, why: Stopped) -> Stopped {
        let why = self.stop_reason.get_or_init(|| why).clone();
        if !self.stopped.swap(true, Ordering::AcqRel) {
            self.waiters.wake();
            self.waiters.kick();
        }
        why
    }

    /// Why the clone was stopped, if it was.
    pub(super) fn why(&self) -> Option<&Stopped> {
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

    /// Whether a frame may be filled with zeros here because the guest's kernel has no use for its
    /// bytes.
    pub(super) fn is_free(&self, frame: FrameIndex) -> bool {
        self.options.free_frames == FreeFrames::Zero && self.locality.is_free(frame)
    }

    /// Frames that were requested ahead of any touch and have not arrived.
    pub(super) fn speculative(&self) -> usize {
        self.speculative.load(Ordering::Acquire)
    }

    /// So many frames are requested ahead of any touch.
    pub(super) fn add_speculative(&self, frames: usize) {
        self.speculative.fetch_add(frames, Ordering::AcqRel);
    }

    /// A frame that was requested ahead is no longer on its way.
    pub(super) fn end_speculative(&self, flags: Flags) {
        if flags.is_speculative() {
            self.speculative.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// No thread works on a frame any more: the vCPUs that wait for it look again.
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

    /// Pauses before a port is called again that may have returned at once with nothing: ever
    /// longer, so that it does not keep a processor busy. The caller checks whether to go on.
    pub(super) fn back_off(&self, has_waited: bool, idle: &mut Retry) {
        if has_waited {
            idle.reset();
        } else {
            // `idle` has no end.
            let _ = idle.pause(&*self.clock);
        }
    }
}
