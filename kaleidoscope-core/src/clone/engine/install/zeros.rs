//! Frames that are zeros: those that the guest gave back, and free ones.

use super::super::super::options::Stopped;
use super::super::super::ports::Installed;
use super::super::super::statistics::Count;
use super::{Attempt, Installer};
use crate::addr::FrameIndex;
use crate::sync::RwLockReadGuard;

impl Installer {
    /// Fills a frame that was given back with zeros. The thread owns the frame.
    pub(in super::super) fn refill(
        &self,
        _gate: &RwLockReadGuard<'_, ()>,
        frame: FrameIndex,
    ) -> Result<Attempt, Stopped> {
        let state = self.state();
        let (flags, attempt) = match self.port.zero(frame)? {
            Installed::TryAgain => (state.frames.keep_removed(frame), Attempt::Again),
            Installed::AlreadyPresent => {
                // Zeros of an earlier fault, or bytes that are about to go: the vCPU looks again,
                // and faults again if they are gone.
                let flags = state.frames.keep_removed(frame);
                self.port.wake(frame)?;
                (flags, Attempt::Done)
            }
            Installed::Installed => {
                let flags = state.frames.finish_refill(frame);
                if !flags.refilled {
                    state.accounts.take_for_fault();
                    state.accounts.add_resident(state.color(frame));
                }
                state.count(frame, Count::ZeroFaults);
                (flags, Attempt::Done)
            }
        };
        state.wake_if_wanted(flags);
        Ok(attempt)
    }

    /// Fills free frames with zeros ahead of any touch, run by run.
    pub(in super::super) fn zero_ahead(&self, frames: &mut [FrameIndex]) -> Result<(), Stopped> {
        if frames.is_empty() {
            return Ok(());
        }
        let accounts = &self.state().accounts;
        let taken = accounts.take_for_prefetch(frames.len());
        let frames = frames.get_mut(..taken).unwrap_or_default();
        frames.sort_unstable();
        let mut left = taken;
        let result = self.zero_runs(frames, &mut left);
        accounts.give_back(left);
        result
    }

    /// Fills frames with zeros, and counts down `left` for each.
    fn zero_runs(&self, frames: &[FrameIndex], left: &mut usize) -> Result<(), Stopped> {
        let state = self.state();
        let mut rest = frames;
        while let Some(first) = rest.first() {
            let _gate = self.events.enter();
            let follows = |(n, frame): (u32, &FrameIndex)| {
                frame.0 == first.0.saturating_add(n) && state.frames.claim_for_zeros(*frame)
            };
            let taken = (0u32..).zip(rest).take_while(|pair| follows(*pair)).count();
            let run = rest.get(..taken).unwrap_or_default();
            // The first frame may be resident by now.
            rest = rest.get(taken.max(1)..).unwrap_or_default();
            if let Some(last) = run.last() {
                let filled = self.port.zero_run(first.0..last.0.saturating_add(1))?;
                for (n, frame) in (0u32..).zip(run) {
                    let flags = if n < filled {
                        *left -= 1;
                        state.count(*frame, Count::ZeroedAhead);
                        state.accounts.add_resident(state.color(*frame));
                        state.frames.finish_install(*frame)
                    } else {
                        state.frames.set_absent(*frame)
                    };
                    state.wake_if_wanted(flags);
                }
            }
        }
        Ok(())
    }

    /// A frame arrived: the free frames that are filled together with it need not wait for a fault.
    pub(super) fn zero_granule(&self, frame: FrameIndex) -> Result<(), Stopped> {
        let Some(granule) = self.granules.first_arrival(frame) else { return Ok(()) };
        let free = granule.map(FrameIndex).filter(|frame| self.state().is_free(*frame));
        self.zero_ahead(&mut free.collect::<Vec<_>>())
    }
}
