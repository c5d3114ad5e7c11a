//! Recorded orders: the frames that a clone is expected to access, in order.

use super::LocalityOrder;
use crate::addr::FrameIndex;
use bitvec::vec::BitVec;

/// Marks a frame that is not in the recorded order.
const NOT_RECORDED: u32 = u32::MAX;

/// The frames that an earlier clone accessed, in order, translated to this guest. Shared by all of
/// its clones. A *stop* is an index into this order.
#[derive(Clone, Debug)]
pub struct RecordedOrder {
    frames: Vec<FrameIndex>,
    /// Whether each stop is likely enough to be fetched before a fault confirms that the clone
    /// follows the recording.
    sure: BitVec,
    /// Stop of every frame of the guest, or `NOT_RECORDED`.
    stops: Vec<u32>,
    /// Whether each stretch contains a stop.
    visited: BitVec,
}

impl RecordedOrder {
    /// A recorded order from frames in expected order, each with the likelihood (0 to 1) that it
    /// is accessed. Frames below `least` keep their stop, but are not fetched speculatively. Free
    /// frames, repeated frames and frames outside the guest are left out.
    #[must_use]
    pub fn new(
        locality: &LocalityOrder,
        expected: impl IntoIterator<Item = (FrameIndex, f32)>,
        least: f32,
    ) -> Self {
        let mut recorded_order = Self {
            frames: Vec::new(),
            sure: BitVec::new(),
            stops: vec![NOT_RECORDED; locality.frames() as usize],
            visited: BitVec::repeat(false, locality.stretches()),
        };
        for (frame, likelihood) in expected {
            let Some(stop) = recorded_order.stops.get_mut(frame.as_usize()) else { continue };
            if *stop == NOT_RECORDED && !locality.is_free(frame) {
                *stop = u32::try_from(recorded_order.frames.len()).unwrap_or(NOT_RECORDED);
                recorded_order.frames.push(frame);
                recorded_order.sure.push(likelihood >= least);
                let stretch = locality.stretch(frame).unwrap_or(u32::MAX) as usize;
                if let Some(mut visited) = recorded_order.visited.get_mut(stretch) {
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

    /// The stop of a frame; `None` if the frame is not in the order.
    #[must_use]
    pub fn stop(&self, frame: FrameIndex) -> Option<usize> {
        let stop = self.stops.get(frame.as_usize()).copied().filter(|s| *s != NOT_RECORDED)?;
        Some(stop as usize)
    }

    /// The frame of a stop, and whether it may be fetched speculatively.
    #[must_use]
    pub fn at(&self, stop: usize) -> Option<(FrameIndex, bool)> {
        Some((*self.frames.get(stop)?, *self.sure.get(stop)?))
    }

    /// Whether a stretch contains any stop.
    #[must_use]
    pub fn visits(&self, stretch: u32) -> bool {
        self.visited.get(stretch as usize).is_some_and(|visited| *visited)
    }
}
