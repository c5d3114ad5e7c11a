//! A bit for each frame.

use kaleidoscope_core::addr::FrameIndex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A set of frames that several threads add to and query. A thread that finds a frame sees all
/// writes that the adding thread made before.
#[derive(Debug)]
pub(crate) struct FrameSet(Vec<AtomicU64>);

impl FrameSet {
    /// An empty set, for frames below this number.
    pub(crate) fn new(frames: u32) -> Self {
        Self((0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn word(&self, frame: FrameIndex) -> Option<(&AtomicU64, u64)> {
        Some((self.0.get(frame.as_usize() / 64)?, 1 << (frame.0 % 64)))
    }

    /// Whether the set has a frame.
    pub(crate) fn has(&self, frame: FrameIndex) -> bool {
        self.word(frame).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Adds a frame. Returns whether it is new.
    pub(crate) fn set(&self, frame: FrameIndex) -> bool {
        let word = self.word(frame);
        word.is_some_and(|(word, bit)| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }
}
