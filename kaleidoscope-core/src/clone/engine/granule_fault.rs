//! The path of a fault on memory whose frames become resident several at a time, such as a clone on
//! 2 MiB pages.
//!
//! Such memory faults on a whole host page, called a *granule*, and the granule is installed as a
//! whole. Colors, requests and plans still refer to frames: free frames of a granule are not
//! fetched, and its prefetched frames are not requested again.

use super::super::options::Stopped;
use super::super::ports::{Delivery, Priority};
use super::super::retry::Retry;
use super::super::statistics::Count;
use super::fault::FaultPath;
use super::frame_states::Step;
use super::install::{Attempt, Origin, Reason};
use crate::addr::FrameIndex;
use crate::prefetch::{Access, Fault};
use std::ops::Range;

/// The frames of a granule that are not resident yet.
#[derive(Debug, Default)]
struct Missing {
    /// Frames to request, or to request again as urgent.
    to_request: Vec<FrameIndex>,
    /// Free frames to fill with zeros once the memory is no longer changing.
    to_zero: Vec<FrameIndex>,
    /// Some frames are in flight.
    must_wait: bool,
    /// Some frames had not been requested.
    is_new: bool,
}

impl FaultPath {
    /// Answers a fault on a granule; returns when all of it is resident.
    pub(super) fn answer_granule(
        &self,
        granule: &Range<u32>,
        frame: FrameIndex,
        access: Access,
    ) -> Result<(), Stopped> {
        let (state, events) = (self.state(), &self.fetcher.installer.events);
        let start = state.clock.now();
        let mut retry = Retry::since(start, state.options.timeout);
        let mut stalled = false;
        loop {
            state.check()?;
            let mut missing = Missing::default();
            let mut rest = granule.clone();
            // Go on where the attempt was interrupted, so that no zeros are installed twice.
            while self.claim(&mut rest, &mut missing)? == Attempt::Again {
                events.before_retry(frame, &mut retry)?;
            }
            if !missing.must_wait {
                break;
            }
            let is_first = !stalled;
            stalled = true;
            self.request_missing(&missing)?;
            if is_first {
                self.report_fault(Fault { frame, access, in_flight: !missing.is_new }, &missing)?;
            }
            for frame in granule.clone().map(FrameIndex) {
                self.fetcher.wait_for(frame, start)?;
            }
            if !is_first {
                // Some frames arrived, and the guest gave them back again.
                state.pause(frame, &mut retry)?;
            }
        }
        if stalled {
            self.record_stall(frame, start);
            return Ok(());
        }
        // The granule arrived after the touch, and the vCPU may still be blocked.
        self.fetcher.installer.wake(frame)
    }

    /// Claims the frames of `rest`: installs staged pages and zeros, and adds the frames that must
    /// be fetched to `missing`. Advances `rest` past each frame that is done.
    fn claim(&self, rest: &mut Range<u32>, missing: &mut Missing) -> Result<Attempt, Stopped> {
        let (state, installer) = (self.state(), &self.fetcher.installer);
        let gate = installer.events.enter();
        while let Some(frame) = rest.clone().next().map(FrameIndex) {
            let attempt = match state.frames.fault(frame) {
                Step::Present => Attempt::Done,
                Step::Unavailable => return Err(Stopped::Unavailable { frame }),
                Step::InstallStaged => installer.install_staged(&gate, frame, Reason::Touched)?,
                Step::InstallZeros => installer.refill(&gate, frame)?,
                Step::Request => {
                    // Under the gate, so that the frame is charged before it can be removed.
                    state.accounts.take_for_fault();
                    missing.must_wait = true;
                    missing.is_new = true;
                    let zeros = Delivery::Zero(frame);
                    if !state.is_free(frame) {
                        missing.to_request.push(frame);
                    } else if installer.try_deliver(&gate, zeros, Origin::Zeros)? == Attempt::Again
                    {
                        missing.to_zero.push(frame);
                    }
                    Attempt::Done
                }
                Step::Expedite => {
                    missing.to_request.push(frame);
                    missing.must_wait = true;
                    Attempt::Done
                }
                Step::Wait => {
                    missing.must_wait = true;
                    Attempt::Done
                }
            };
            if attempt == Attempt::Again {
                return Ok(Attempt::Again);
            }
            rest.start += 1;
        }
        Ok(Attempt::Done)
    }

    fn request_missing(&self, missing: &Missing) -> Result<(), Stopped> {
        if !missing.to_request.is_empty() {
            self.fetcher.request(&missing.to_request, Priority::Urgent)?;
        }
        for frame in &missing.to_zero {
            self.fetcher.installer.deliver(Delivery::Zero(*frame), Origin::Zeros)?;
        }
        Ok(())
    }

    /// Counts a fault, and reports it to the policy.
    fn report_fault(&self, fault: Fault, missing: &Missing) -> Result<(), Stopped> {
        let count = match (missing.is_new, missing.to_request.is_empty()) {
            (false, _) => Count::Late,
            (true, true) => Count::ZeroFaults,
            (true, false) => Count::Faults,
        };
        self.state().count(fault.frame, count);
        let (_, zeros) = self.fetcher.ask_policy(&fault);
        self.fetcher.apply_plan(zeros)
    }
}
