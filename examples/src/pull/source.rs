//! A page source that tells the file which frames the image does not hold.

use super::copy::Copy;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Delivery, PageSource, Priority, SourceError};
use kaleidoscope_core::memory::SnapshotId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A set of frames that threads share, one bit each.
pub(super) struct Frames(Vec<AtomicU64>);

impl Frames {
    /// None of so many frames.
    pub(super) fn none_of(frames: u32) -> Self {
        Self((0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn add(&self, frame: FrameIndex) {
        if let Some(word) = self.0.get(frame.as_usize() / 64) {
            word.fetch_or(1 << (frame.0 % 64), Ordering::Relaxed);
        }
    }

    pub(super) fn has(&self, frame: FrameIndex) -> bool {
        let word = self.0.get(frame.as_usize() / 64);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (frame.0 % 64)) != 0)
    }

    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }
}

/// A page source, and the file that is to know what the image does not hold.
pub(super) struct Watched {
    pub(super) source: Arc<dyn PageSource>,
    pub(super) copy: Arc<Copy>,
}

impl PageSource for Watched {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.source.request(frames, priority)
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        self.source.receive(wait, &mut |delivery| {
            if let Delivery::Unavailable(frame) = delivery {
                self.copy.lack(frame);
            }
            deliver(delivery);
        })
    }

    fn window(&self) -> usize {
        self.source.window()
    }

    fn snapshot_id(&self) -> Option<SnapshotId> {
        self.source.snapshot_id()
    }
}
