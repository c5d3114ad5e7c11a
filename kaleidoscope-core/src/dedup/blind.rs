//! A selector of all frames in frame order: the baseline for the other selectors.

use super::DedupSelector;
use crate::addr::FrameIndex;
use crate::prefetch::LocalityOrder;
use std::sync::Arc;

/// Selects all frames that are not free, by frame number.
#[derive(Clone, Debug)]
pub struct Blind {
    locality: Arc<LocalityOrder>,
    next: u32,
}

impl Blind {
    /// A selector of all frames of a guest.
    #[must_use]
    pub fn new(locality: Arc<LocalityOrder>) -> Self {
        Self { locality, next: 0 }
    }
}

impl DedupSelector for Blind {
    fn name(&self) -> &str {
        "blind"
    }

    fn select(&mut self, room: usize, frames: &mut Vec<FrameIndex>) {
        let end = frames.len().saturating_add(room);
        while frames.len() < end && self.next < self.locality.frames() {
            let frame = FrameIndex(self.next);
            self.next = self.next.saturating_add(1);
            if !self.locality.is_free(frame) {
                frames.push(frame);
            }
        }
    }
}
