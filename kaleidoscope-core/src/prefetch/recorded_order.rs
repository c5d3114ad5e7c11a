//! Itineraries: the frames that a clone is expected to touch, in order.

use super::LocalityOrder;
use crate::addr::FrameIndex;

/// A frame is in no recorded_order.
const NOWHERE: u32 = u32::MAX;

/// The frames that an earlier clone touched, in order, in terms of this guest. Shared by all of its
/// clones.
#[derive(Clone, Debug)]
pub struct RecordedOrder {
    frames: Vec<FrameIndex>,
    /// Whether each stop is sure enough to be fetched before a fault says that the clone goes its
    /// way.
    sure: Vec<bool>,
    /// Stop of every frame of the guest.
    stops: Vec<u32>,
    /// Whether each stretch has a stop.
    visited: Vec<bool>,
}

impl RecordedOrder {
    /// An recorded_order of frames in expected order, each with how likely it is to be touched (0
    /// to 1). Those below `least` are known, but not fetched on suspicion. Frames that are
    /// free, twice or outside the guest are left out.
    #[must_use]
    pub fn new(
        locality: &LocalityOrder,
        expected: impl IntoIterator<Item = (FrameIndex, f32)>,
        least: f32,
    ) -> Self {
        let mut recorded_order = Self {
            frames: Vec::new(),
            sure: Vec::new(),
            stops: vec![NOWHERE; locality.frames() as usize],
            visited: vec![false; locality.stretches()],
        };
        for (frame, likelihood) in expected {
            let Some(stop) = recorded_order.stops.get_mut(frame.as_usize()) else { continue };
            if *stop == NOWHERE && !locality.is_free(frame) {
                *stop = u32::try_from(recorded_order.frames.len()).unwrap_or(NOWHERE);
                recorded_order.frames.push(frame);
                recorded_order.sure.push(likelihood >= least);
                let stretch = locality.stretch(frame).unwrap_or(u32::MAX) as usize;
                if let Some(visited) = recorded_order.visited.get_mut(stretch) {
                    *visited = true;
                }
            }
        }
        recorded_order
    }

    /// Number of stops.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is no stop.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// At which stop a frame comes; `None` if it does not.
    #[must_use]
    pub fn stop(&self, frame: FrameIndex) -> Option<usize> {
        let stop = self.stops.get(frame.as_usize()).copied().filter(|s| *s != NOWHERE)?;
        Some(stop as usize)
    }

    /// The frame of a stop, and whether it is sure.
    #[must_use]
    pub fn at(&self, stop: usize) -> Option<(FrameIndex, bool)> {
        Some((*self.frames.get(stop)?, *self.sure.get(stop)?))
    }

    /// Whether some stop is in a stretch.
    #[must_use]
    pub fn visits(&self, stretch: u32) -> bool {
        self.visited.get(stretch as usize).copied().unwrap_or(false)
    }
}
