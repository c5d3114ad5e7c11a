//! The path of a fault: from the touch to the page.
//!
//! ```text
//!  claim the frame ─► request it, urgently ─► ask the policy ─► carry out its plan ─► receive until it is resident
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

/// Answers faults, on the threads that bring them.
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
    /// [`Stopped`] when it will never be.
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
                        // It arrived between the touch and now, and the vCPU may still sleep.
                        installer.wake(frame)?;
                    }
                    break;
                }
                Step::Unavailable => return Err(Stopped::Unavailable { frame }),
                Step::InstallStaged => installer.install_staged(&gate, frame, Reason::Touched)?,
                Step::InstallZeros => installer.refill(&gate, frame)?,
                Step::Request | Step::Expedite | Step::Wait => {
                    if step == Step::Request {
                        // Inside the gate: the frame cannot be given back before.
                        state.accounts.take_for_fault();
                    }
                    drop(gate);
                    match step {
                        Step::Request => {
                            self.first_touch(Fault { frame, access, in_flight: false })?;
                        }
                        Step::Expedite => {
                            self.first_wait(Fault { frame, access, in_flight: true })?;
                        }
                        _ => {}
                    }
                    self.fetcher.wait_for(frame, start)?;
                    if stalled {
                        // It arrived, and was given back since.
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

    /// A frame that was not requested was touched: this thread requests it.
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
            // The page is on its way while the policy plans.
            state.count(frame, Count::Faults);
            fetcher.request(&[frame], Priority::Urgent)?;
            fetcher.ask_policy(&fault).1
        };
        fetcher.apply_plan(zeros)
    }

    /// A frame on its way was touched for the first time.
    fn first_wait(&self, fault: Fault) -> Result<(), Stopped> {
        self.state().count(fault.frame, Count::Late);
        self.fetcher.request(&[fault.frame], Priority::Urgent)?;
        let (_, zeros) = self.fetcher.ask_policy(&fault);
        self.fetcher.apply_plan(zeros)
    }

    /// A fault that had to wait is over.
    pub(super) fn record_stall(&self, frame: FrameIndex, start: Duration) {
        let state = self.state();
        let now = state.clock.now();
        state.counters.stalled(state.color(frame), now.saturating_sub(start));
        state.accounts.sample(now);
        if state.speculative() > 0 {
            // Others are on their way, and this thread no longer receives them.
            state.waiters.kick();
        }
    }
}
