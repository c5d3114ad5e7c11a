//! Pages that are on this host already.

use super::deliver::Origin;
use super::engine::Inner;
use super::options::Stopped;
use super::ports::{AtHand, Delivery, Nearby, Priority};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::memory::Page;
use crate::store::Shelf;

impl Inner {
    /// Has frames come that were taken note of as asked for: what is at hand is delivered by this thread, the source is asked for the others.
    pub(super) fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), Stopped> {
        let Some(nearby) = &self.nearby else {
            return Ok(self.source.request(frames, priority)?);
        };
        let mut others = Vec::new();
        let mut page = [0; FRAME_BYTES];
        for frame in frames.iter().copied() {
            match nearby.take(frame, &mut page) {
                AtHand::Page => self.deliver(Delivery::Page(frame, &page), Origin::Nearby)?,
                AtHand::Zero => self.deliver(Delivery::Zero(frame), Origin::Nearby)?,
                AtHand::Nothing => others.push(frame),
            }
        }
        if others.is_empty() { Ok(()) } else { Ok(self.source.request(&others, priority)?) }
    }
}

/// A store that fails is one that has nothing: pages then come from where they came from.
impl Nearby for Shelf {
    fn take(&self, frame: FrameIndex, page: &mut Page) -> AtHand {
        if self.fingerprints().is_zero(frame) {
            return AtHand::Zero;
        }
        match Shelf::take(self, frame, page) {
            Ok(true) => AtHand::Page,
            Ok(false) | Err(_) => AtHand::Nothing,
        }
    }

    fn keep(&self, frame: FrameIndex, page: &Page) {
        // What could not be kept can be fetched.
        let _ = Shelf::keep(self, frame, page);
    }
}
