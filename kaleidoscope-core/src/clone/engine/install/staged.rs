//! Staged pages: prefetched pages that are kept out of the clone's memory, so that the first touch
//! faults and shows that the page was used.

use super::super::super::options::{Feedback, Stopped};
use super::super::super::ports::Installed;
use super::super::super::retry::Retry;
use super::super::super::statistics::Count;
use super::{Attempt, Installer};
use crate::addr::FrameIndex;
use crate::memory::Page;
use crate::prefetch::PrefetchOutcome;
use crate::sync::RwLockReadGuard;

/// Why a staged page enters the clone's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum Reason {
    /// The clone touched it.
    Touched,
    /// The background fill has nothing else to fetch.
    Filled,
}

impl Installer {
    /// Whether a prefetched frame is in the sample whose use is observed.
    pub(super) fn is_sampled(&self, frame: FrameIndex) -> bool {
        match self.state().options.feedback {
            Feedback::Off | Feedback::Sampled { one_in: 0 } => false,
            Feedback::Staged => true,
            Feedback::Sampled { one_in } => {
                // Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, section 6.4)
                // spreads the sample evenly over neighboring frames.
                (frame.0.wrapping_mul(0x9e37_79b1) >> 8).is_multiple_of(one_in)
            }
        }
    }

    /// Stages a page; `false` when a vCPU now waits for it. Drops the oldest pages to make room.
    pub(super) fn try_stage(&self, frame: FrameIndex, page: Option<&Page>) -> bool {
        while self.state().staging.lock().is_full()
            && let Some(oldest) = self.drop_oldest_staged()
        {
            self.report_unused(oldest);
        }
        let mut staging = self.state().staging.lock();
        let is_staged = self.state().frames.stage(frame);
        if is_staged {
            staging.put(frame, page);
        }
        is_staged
    }

    /// Drops the oldest staged page and returns its frame; `None` when no page is staged.
    pub(in super::super) fn drop_oldest_staged(&self) -> Option<FrameIndex> {
        let mut staging = self.state().staging.lock();
        loop {
            let oldest = staging.pop_oldest()?;
            // If a fault already owns the frame, the fault takes the page.
            if self.state().frames.drop_staged(oldest) {
                let page = staging.take(oldest).flatten();
                staging.recycle(page);
                self.state().accounts.give_back(1);
                return Some(oldest);
            }
        }
    }

    /// Installs a staged page. The thread owns the frame.
    pub(in super::super) fn install_staged(
        &self,
        gate: &RwLockReadGuard<'_, ()>,
        frame: FrameIndex,
        reason: Reason,
    ) -> Result<Attempt, Stopped> {
        let state = self.state();
        let Some(page) = state.staging.lock().take(frame) else {
            // Not expected. The frame becomes absent, and is fetched again.
            let flags = state.frames.set_absent(frame);
            state.accounts.give_back(1);
            state.wake_if_wanted(flags);
            return Ok(Attempt::Again);
        };
        if self.install(gate, frame, page.as_deref())? == Installed::TryAgain {
            let mut staging = state.staging.lock();
            staging.put(frame, page.as_deref());
            let flags = state.frames.restage(frame);
            drop(staging);
            state.wake_if_wanted(flags);
            return Ok(Attempt::Again);
        }
        let flags = state.frames.finish_install(frame);
        state.wake_if_wanted(flags);
        state.staging.lock().recycle(page);
        state.accounts.add_resident(state.color(frame));
        if reason == Reason::Touched {
            state.count(frame, Count::StagedFaults);
            state.count(frame, Count::Used);
            self.report_used(frame);
        }
        Ok(Attempt::Done)
    }

    /// Installs all staged pages. Called when the clone is to be filled and no page is in flight.
    pub(in super::super) fn install_all_staged(&self) -> Result<(), Stopped> {
        let mut retry = Retry::new(self.state().options.timeout);
        loop {
            let Some(frame) = self.state().staging.lock().pop_oldest() else { return Ok(()) };
            let gate = self.events.enter();
            if self.state().frames.claim_staged(frame) {
                let attempt = self.install_staged(&gate, frame, Reason::Filled)?;
                drop(gate);
                match attempt {
                    Attempt::Done => retry.reset(),
                    Attempt::Again => self.events.before_retry(frame, &mut retry)?,
                }
            }
        }
    }

    /// Tells the policy that a prefetched frame was not used.
    pub(in super::super) fn report_unused(&self, frame: FrameIndex) {
        self.state().count(frame, Count::Unused);
        self.scheduler.lock().feedback(frame, PrefetchOutcome::Unused);
    }

    /// Tells the policy that a prefetched frame was used.
    pub(in super::super) fn report_used(&self, frame: FrameIndex) {
        self.scheduler.lock().feedback(frame, PrefetchOutcome::Used);
    }
}
