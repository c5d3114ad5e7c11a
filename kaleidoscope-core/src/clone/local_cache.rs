//! Pages that are on this host already.

use super::deliver::Origin;
use super::engine::Inner;
use super::options::Stopped;
use super::ports::{Delivery, LocalCache, Lookup, Priority};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::memory::Page;
use crate::store::StoreView;

impl Inner {
    /// Has frames come that were taken note of as asked for: what is at hand is delivered by this
    /// thread, the source is asked for the others.
    pub(super) fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), Stopped> {
        let Some(local_cache) = &self.local_cache else {
            return Ok(self.source.request(frames, priority)?);
        };
        let mut others = Vec::new();
        let mut page = [0; FRAME_BYTES];
        for frame in frames.iter().copied() {
            match local_cache.take(frame, &mut page) {
                Lookup::Page => self.deliver(Delivery::Page(frame, &page), Origin::LocalCache)?,
                Lookup::Zero => self.deliver(Delivery::Zero(frame), Origin::LocalCache)?,
                Lookup::Miss => others.push(frame),
            }
        }
        if others.is_empty() { Ok(()) } else { Ok(self.source.request(&others, priority)?) }
    }
}

/// A store that fails is one that has nothing: pages then come from where they came from.
impl LocalCache for StoreView {
    fn take(&self, frame: FrameIndex, page: &mut Page) -> Lookup {
        if self.fingerprints().is_zero(frame) {
            return Lookup::Zero;
        }
        match StoreView::take(self, frame, page) {
            Ok(true) => Lookup::Page,
            Ok(false) | Err(_) => Lookup::Miss,
        }
    }

    fn keep(&self, frame: FrameIndex, page: &Page) {
        // What could not be kept can be fetched.
        let _ = StoreView::keep(self, frame, page);
    }
}
