//! Eviction of prefetched pages from the clone's memory.

use super::super::super::options::Stopped;
use super::super::super::ports::Eviction;
use super::Installer;
use crate::addr::FrameIndex;

impl Installer {
    /// Evicts a prefetched frame, unless the clone has touched it.
    pub(in super::super) fn evict(&self, frame: FrameIndex) -> Result<Eviction, Stopped> {
        let state = self.state();
        let _gate = self.events.enter();
        if !state.frames.claim_for_eviction(frame) {
            return Ok(Eviction::InUse);
        }
        let eviction = self.port.evict(frame)?;
        let flags = match eviction {
            Eviction::Evicted => {
                state.accounts.remove_resident(state.color(frame));
                state.frames.set_absent(frame)
            }
            Eviction::InUse => state.frames.keep_used(frame),
            Eviction::Unsupported => state.frames.finish_install(frame),
        };
        state.wake_if_wanted(flags);
        Ok(eviction)
    }
}
