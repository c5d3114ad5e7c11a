//! Giving memory back: what was prefetched and never touched.

use super::engine::Inner;
use super::options::Stopped;
use super::ports::Eviction;
use super::statistics::Count;
use crate::addr::FrameIndex;
use crate::prefetch::PrefetchOutcome;
use crate::sync::Ordering;

/// Frames that are given back before looking whether it is enough: a chunk of the allocator.
const AT_ONCE: u32 = 512;

impl Inner {
    /// Drops plans, then staged pages, then takes prefetched frames back that the clone has not
    /// touched, until `wanted` frames are free again; returns how many are.
    pub(super) fn reclaim(&self, wanted: u32) -> Result<u32, Stopped> {
        self.scheduler.lock().drop_plans(self);
        let mut reclaimed = 0;
        while reclaimed < wanted
            && let Some(frame) = self.drop_staged()
        {
            self.unused(frame);
            reclaimed += 1;
        }
        // From where the last search ended, once around: who gives back little by little does not
        // start over each time.
        let count = self.locality.frames();
        let start = self.reclaimed_to.load(Ordering::Relaxed).min(count);
        let mut frames = (start..count).chain(0..start).map(FrameIndex);
        while reclaimed < wanted
            && !self.stopped.load(Ordering::Acquire)
            && let Some(frame) = frames.find(|frame| self.states.is_prefetched(*frame))
        {
            self.reclaimed_to.store(frame.0, Ordering::Relaxed);
            match self.evict(frame)? {
                Eviction::Evicted => {
                    self.unused(frame);
                    reclaimed += 1;
                }
                Eviction::InUse => self.known_used(frame),
                Eviction::Unsupported => break,
            }
        }
        Ok(reclaimed)
    }

    /// Memory is scarce: gives back until it is not, or nothing is left to give; but no more than a
    /// guest's frames in one go, since others may take as fast as this gives, and faults wait
    /// for this thread, too.
    pub(super) fn relieve(&self) -> Result<(), Stopped> {
        for _ in 0..=self.locality.frames() / AT_ONCE {
            self.check()?;
            if !self.memory.is_scarce() || self.reclaim(AT_ONCE)? == 0 {
                return Ok(());
            }
        }
        self.memory.press();
        self.waiters.kick();
        Ok(())
    }

    /// Drops the staged page that is the oldest.
    pub(super) fn drop_staged(&self) -> Option<FrameIndex> {
        let mut staging = self.staging.lock();
        loop {
            let oldest = staging.oldest()?;
            // A fault may own it by now; it then takes the page itself.
            if self.states.unstage(oldest) {
                let page = staging.take(oldest).flatten();
                staging.recycle(page);
                self.memory.give_back(1);
                return Some(oldest);
            }
        }
    }

    /// Empties a prefetched frame unless the clone has touched it.
    fn evict(&self, frame: FrameIndex) -> Result<Eviction, Stopped> {
        let _gate = self.gate.read();
        if !self.states.take_prefetched(frame) {
            return Ok(Eviction::InUse);
        }
        let taken = self.installer.evict(frame)?;
        let flags = match taken {
            Eviction::Evicted => {
                self.memory.leave(self.color(frame));
                self.states.emptied(frame)
            }
            Eviction::InUse => self.states.found_used(frame),
            Eviction::Unsupported => self.states.placed(frame),
        };
        self.settled(flags);
        Ok(taken)
    }

    pub(super) fn unused(&self, frame: FrameIndex) {
        self.counters.add(self.color(frame), Count::Unused);
        self.scheduler.lock().feedback(frame, PrefetchOutcome::Unused);
    }

    fn known_used(&self, frame: FrameIndex) {
        self.scheduler.lock().feedback(frame, PrefetchOutcome::Used);
    }
}
