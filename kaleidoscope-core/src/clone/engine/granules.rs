//! Frames that are filled together: a *granule* is a page of the host, where it has larger ones.

use crate::addr::FrameIndex;
use crate::memory::LazyTable;
use crate::sync::{AtomicBool, Ordering};
use std::ops::Range;

/// Which frames are filled together.
#[derive(Debug)]
pub(super) struct Granules {
    /// Frames of each, at least one.
    frames: u32,
    /// Frames of the guest.
    guest_frames: u32,
    /// Whether a thread has taken care of a granule's free frames.
    free_frames_done: LazyTable<AtomicBool>,
}

impl Granules {
    /// Granules of so many frames (0 is 1) of a guest with `all`, by frame index.
    pub(super) fn new(frames: u32, guest_frames: u32) -> Self {
        let frames = frames.max(1);
        let granules = if frames == 1 { 0 } else { guest_frames.div_ceil(frames) as usize };
        Self { frames, guest_frames, free_frames_done: LazyTable::new(granules) }
    }

    /// The frames that are filled together with this one, for one of the threads that ask when the
    /// first of them arrived.
    pub(super) fn first_arrival(&self, frame: FrameIndex) -> Option<Range<u32>> {
        let granule = self.of(frame)?;
        let is_done = self.free_frames_done.get((granule.start / self.frames) as usize)?;
        let is_first = !is_done.load(Ordering::Relaxed) && !is_done.swap(true, Ordering::Relaxed);
        is_first.then_some(granule)
    }

    /// The frames that are filled with this one, if there are others.
    pub(super) fn of(&self, frame: FrameIndex) -> Option<Range<u32>> {
        let start = frame.0 / self.frames * self.frames;
        (self.frames > 1).then(|| start..start.saturating_add(self.frames).min(self.guest_frames))
    }
}
