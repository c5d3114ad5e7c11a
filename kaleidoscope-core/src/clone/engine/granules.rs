//! Granules: frames that become resident together, because they share a host page larger than
//! 4 KiB.

use crate::addr::FrameIndex;
use crate::memory::LazyTable;
use crate::sync::{AtomicBool, Ordering};
use std::ops::Range;

/// The granules of a guest.
#[derive(Debug)]
pub(super) struct Granules {
    /// Frames per granule, at least one.
    frames: u32,
    /// Number of the guest's frames.
    guest_frames: u32,
    /// Whether a thread has zeroed, or is zeroing, the free frames of a granule.
    free_frames_done: LazyTable<AtomicBool>,
}

impl Granules {
    /// Granules of `frames` frames (0 means 1), aligned by frame index, of a guest with
    /// `guest_frames` frames. The last granule may be shorter.
    pub(super) fn new(frames: u32, guest_frames: u32) -> Self {
        let frames = frames.max(1);
        let granules = if frames == 1 { 0 } else { guest_frames.div_ceil(frames) as usize };
        Self { frames, guest_frames, free_frames_done: LazyTable::new(granules) }
    }

    /// The granule of a frame, for the first thread that calls this for the granule; `None` for the
    /// others, and when granules are single frames.
    pub(super) fn first_arrival(&self, frame: FrameIndex) -> Option<Range<u32>> {
        let granule = self.of(frame)?;
        let is_done = self.free_frames_done.get((granule.start / self.frames) as usize)?;
        let is_first = !is_done.load(Ordering::Relaxed) && !is_done.swap(true, Ordering::Relaxed);
        is_first.then_some(granule)
    }

    /// The granule of a frame; `None` when granules are single frames.
    pub(super) fn of(&self, frame: FrameIndex) -> Option<Range<u32>> {
        let start = frame.0 / self.frames * self.frames;
        (self.frames > 1).then(|| start..start.saturating_add(self.frames).min(self.guest_frames))
    }
}
