//! Reclaim: frees frames that were prefetched and never touched.

use super::super::options::Stopped;
use super::super::ports::Eviction;
use super::core::Core;
use crate::addr::FrameIndex;
use std::sync::atomic::Ordering;

/// Frames that are freed before the pressure is checked again: a chunk of the allocator.
const RECLAIM_BATCH: u32 = 512;

impl Core {
    /// Drops plans, then staged pages, then evicts prefetched frames that the clone has not
    /// touched, until `wanted` frames are free. Returns the number of freed frames.
    pub(super) fn reclaim(&self, wanted: u32) -> Result<u32, Stopped> {
        let (state, installer) = (self.state(), self.installer());
        self.fetcher().scheduler.lock().drop_plans(state);
        let mut reclaimed = 0;
        while reclaimed < wanted
            && let Some(frame) = installer.drop_oldest_staged()
        {
            installer.report_unused(frame);
            reclaimed += 1;
        }
        // Search all frames once, from where the last search ended: repeated small reclaims do not
        // start over each time.
        let count = state.locality.frames();
        let start = self.reclaimed_to.load(Ordering::Relaxed).min(count);
        let mut frames = (start..count).chain(0..start).map(FrameIndex);
        while reclaimed < wanted
            && !state.is_stopped()
            && let Some(frame) = frames.find(|frame| state.frames.is_prefetched(*frame))
        {
            self.reclaimed_to.store(frame.0, Ordering::Relaxed);
            match installer.evict(frame)? {
                Eviction::Evicted => {
                    installer.report_unused(frame);
                    reclaimed += 1;
                }
                Eviction::InUse => installer.report_used(frame),
                Eviction::Unsupported => break,
            }
        }
        Ok(reclaimed)
    }

    /// Reclaims until the host is no longer under pressure or nothing is left to free. Stops after
    /// as many frames as the guest has, because other clones may allocate as fast as this one
    /// frees, and deferred faults wait for this thread.
    pub(super) fn relieve_pressure(&self) -> Result<(), Stopped> {
        let state = self.state();
        for _ in 0..=state.locality.frames() / RECLAIM_BATCH {
            state.check()?;
            if !state.accounts.is_under_pressure() || self.reclaim(RECLAIM_BATCH)? == 0 {
                return Ok(());
            }
        }
        state.accounts.request_reclaim();
        state.waiters.kick();
        Ok(())
    }
}
