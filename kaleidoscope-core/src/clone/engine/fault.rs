//! The path of a fault, from the touch until the frame is resident.
//!
//! ```text
//!  claim the frame ─► request it as urgent ─► ask the policy ─► apply its plan ─► receive pages
//!    FrameStates::fault   Fetcher::request    ::ask_policy      ::apply_plan     ::wait_for
//! ```

use super::super::options::Stopped;
use super::super::ports::{Delivery, Priority};
use super::super::retry::Retry;
use super::super::statistics::Count;
use super::fetcher::Fetcher;
use super::frame_states::Step;
use super::install::{Attempt, Origin, Reason};
use super::state::CloneState;
use crate::addr::FrameIndex;
use crate::prefetch::{Access, Answer, Fault};
use std::time::Duration;

/// Answers faults, on the threads that report them.
pub(super) struct FaultPath {
    pub(super) fetcher: Fetcher,
}

impl FaultPath {
    pub(super) fn state(&self) -> &CloneState {
        self.fetcher.state()
    }

    /// Answers a fault; returns when the frame is resident.
    ///
    /// # Errors
    /// [`Stopped`] when the frame cannot become resident.
    pub(super) fn answer(&self, frame: FrameIndex, access: Access) -> Result<(), Stopped> {
        let state = self.state();
        let frames = state.locality.frames();
        if frame.0 >= frames {
            return Err(Stopped::NoSuchFrame { frame, frames });
        }
        let installer = &self.fetcher.installer;
        if let Some(granule) = installer.granules().of(frame) {
            return self.answer_granule(&granule, frame, access);
        }
        let start = state.clock.now();
        let mut retry = Retry::since(start, state.options.timeout);
        let mut stalled = false;
        loop {
            state.check()?;
            let gate = installer.events.enter();
            let step = state.frames.fault(frame);
            let attempt = match step {
                Step::Present => {
                    drop(gate);
                    if !stalled {
                        // The page arrived after the touch, and the vCPU may still be blocked.
                        installer.wake(frame)?;
                    }
                    break;
                }
                Step::Unavailable => return Err(Stopped::Unavailable { frame }),
                Step::InstallStaged => installer.install_staged(&gate, frame, Reason::Touched)?,
                Step::InstallZeros => installer.refill(&gate, frame)?,
                Step::Request | Step::Expedite | Step::Wait => {
                    if step == Step::Request {
                        // Under the gate, so that the frame is charged before it can be removed.
                        state.accounts.take_for_fault();
                    }
                    drop(gate);
                    if step == Step::Request {
                        self.first_touch(Fault { frame, access, in_flight: false })?;
                    } else if step == Step::Expedite {
                        self.first_wait(Fault { frame, access, in_flight: true })?;
                    }
                    self.fetcher.wait_for(frame, start)?;
                    if stalled {
                        // The frame arrived, and the guest gave it back again.
                        state.pause(frame, &mut retry)?;
                    }
                    stalled = true;
                    continue;
                }
            };
            drop(gate);
            match attempt {
                Attempt::Done => break,
                Attempt::Again => installer.events.before_retry(frame, &mut retry)?,
            }
        }
        if stalled {
            self.record_stall(frame, start);
        }
        Ok(())
    }

    /// The first touch of a frame that was not requested: requests it.
    fn first_touch(&self, fault: Fault) -> Result<(), Stopped> {
        let (state, fetcher) = (self.state(), &self.fetcher);
        let frame = fault.frame;
        let zeros = if state.is_free(frame) {
            let (answer, zeros) = fetcher.ask_policy(&fault);
            if answer == Answer::Zero {
                state.count(frame, Count::ZeroFaults);
                fetcher.installer.deliver(Delivery::Zero(frame), Origin::Zeros)?;
            } else {
                state.count(frame, Count::Faults);
                fetcher.request(&[frame], Priority::Urgent)?;
            }
            zeros
        } else {
            // Request first, so that the page is in flight while the policy plans.
            state.count(frame, Count::Faults);
            fetcher.request(&[frame], Priority::Urgent)?;
            fetcher.ask_policy(&fault).1
        };
        fetcher.apply_plan(zeros)
    }

    /// The first touch of a frame that is already in flight: raises its priority.
    fn first_wait(&self, fault: Fault) -> Result<(), Stopped> {
        self.state().count(fault.frame, Count::Late);
        self.fetcher.request(&[fault.frame], Priority::Urgent)?;
        let (_, zeros) = self.fetcher.ask_policy(&fault);
        self.fetcher.apply_plan(zeros)
    }

    /// Records the time that a fault waited, once it is answered.
    pub(super) fn record_stall(&self, frame: FrameIndex, start: Duration) {
        let state = self.state();
        let now = state.clock.now();
        state.counters.stalled(state.color(frame), now.saturating_sub(start));
        state.accounts.sample(now);
        if state.speculative() > 0 {
            // Other pages are in flight, and this thread no longer receives them.
            state.waiters.kick();
        }
    }
}
