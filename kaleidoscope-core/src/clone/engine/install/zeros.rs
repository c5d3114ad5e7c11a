//! Frames that are filled with zeros on this host: removed frames and free frames.

use super::super::super::options::Stopped;
use super::super::super::ports::Installed;
use super::super::super::statistics::Count;
use super::{Attempt, Installer};
use crate::addr::FrameIndex;
use crate::sync::RwLockReadGuard;

impl Installer {
    /// Fills a removed or refilled frame with zeros. The thread owns the frame.
    pub(in super::super) fn refill(
        &self,
        _gate: &RwLockReadGuard<'_, ()>,
        frame: FrameIndex,
    ) -> Result<Attempt, Stopped> {
        let state = self.state();
        let (flags, attempt) = match self.port.zero(frame)? {
            Installed::TryAgain => (state.frames.keep_removed(frame), Attempt::Again),
            Installed::AlreadyPresent => {
                // The frame holds zeros of an earlier fault, or a page that the kernel is about to
                // drop. In that case the woken vCPU faults again.
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

    /// Fills free frames with zeros ahead of any touch, one run of consecutive frames at a time.
    /// Sorts `frames`.
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

    /// Fills sorted frames with zeros, and decrements `left` for each filled frame.
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
            // Skip the first frame if it could not be claimed, because it is no longer absent.
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

    /// A frame arrived: fills the free frames of its granule, unless a thread has done so before.
    /// Otherwise the granule would not become resident without a fault.
    pub(super) fn zero_granule(&self, frame: FrameIndex) -> Result<(), Stopped> {
        let Some(granule) = self.granules.first_arrival(frame) else { return Ok(()) };
        let free = granule.map(FrameIndex).filter(|frame| self.state().is_free(*frame));
        self.zero_ahead(&mut free.collect::<Vec<_>>())
    }
}
