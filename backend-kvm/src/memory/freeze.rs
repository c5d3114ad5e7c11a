//! Preparation of a freeze while the machine runs, which shortens the pause.

use super::file::{MemoryFile, frames_of};
use super::{SnapshotMemory, bytes, runs};
use crate::error::{Asked, Error};
use crate::sys::{Mapping, Tracker};
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::memory::MemoryLayout;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes copied at once; fits a processor's level-2 cache.
const PIECE: usize = 256 << 10;

/// A pass shorter than this leaves little work for the pause: a quarter of the freeze-time limit of
/// the smallest machine.
const SHORT: Duration = Duration::from_micros(500);

/// Maximum number of passes. Each slows the guest a little, and a guest that writes as fast as it
/// is copied would never be paused.
const PASSES: usize = 6;

/// How a machine's RAM is frozen.
pub(crate) enum Prepared {
    /// Its shared mapping of this file becomes private.
    MakePrivate(Arc<MemoryFile>),
    /// Its mapping is private, and its private pages are copied.
    Copy(PageCopier),
}

/// Copies the pages that a machine wrote since its image, or all of its pages.
pub(crate) struct PageCopier {
    /// `None` when all pages are copied.
    image: Option<Arc<SnapshotMemory>>,
    mapping: Arc<Mapping>,
    tracker: Tracker,
    delta: MemoryFile,
    copied: Vec<Range<u32>>,
    buffer: Vec<u8>,
}

/// Repeats a pass, as in pre-copy migration, until the running machine leaves little to do.
pub(super) fn until_short(mut pass: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    for _ in 0..PASSES {
        let start = Instant::now();
        pass()?;
        if start.elapsed() < SHORT {
            break;
        }
    }
    Ok(())
}

impl PageCopier {
    /// Copies the pages of a mapping that differ from the image, or all of them.
    pub(super) fn new(
        layout: &MemoryLayout,
        mapping: &Arc<Mapping>,
        image: Option<Arc<SnapshotMemory>>,
    ) -> Result<Self, Error> {
        let tracker = Tracker::new(Arc::clone(mapping));
        Ok(Self {
            image,
            mapping: Arc::clone(mapping),
            tracker: tracker.supported(
                "tracking a machine's writes (Linux 6.7 or later, and the right to use \
                 userfaultfd)",
            )?,
            delta: MemoryFile::new(bytes(layout))?,
            copied: Vec::new(),
            buffer: vec![0; PIECE],
        })
    }

    /// Starts tracking writes, then copies the private pages.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        let own = self.tracker.begin().asked("tracking what a machine writes")?;
        self.copy(&own)
    }

    /// Starts tracking writes, then copies all pages.
    pub(super) fn begin_full(&mut self) -> Result<(), Error> {
        self.tracker.begin().asked("tracking what a machine writes")?;
        let mut at = 0;
        let end = self.delta.len();
        while at < end {
            let piece = at..at.saturating_add(PIECE).min(end);
            let buffer = self.buffer.get_mut(..piece.len()).unwrap_or_default();
            self.mapping.read(at, buffer).asked("reading guest memory")?;
            for (n, page) in buffer.chunks(FRAME_BYTES).enumerate() {
                // The file reads as zeros without allocating memory for them.
                if page.iter().any(|byte| *byte != 0) {
                    self.delta.write(at + n * FRAME_BYTES, page)?;
                }
            }
            at = piece.end;
        }
        Ok(())
    }

    /// Copies the pages written since the last pass.
    pub(super) fn copy_written(&mut self) -> Result<(), Error> {
        let written = self.tracker.written().asked("looking for what a machine wrote")?;
        self.copy(&written)
    }

    /// Copies the pages written since the last pass, with all vCPUs stopped.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        let written = self.tracker.last_written().asked("looking for what a machine wrote")?;
        self.copy(&written)
    }

    fn copy(&mut self, found: &[Range<usize>]) -> Result<(), Error> {
        for run in found {
            // The mapping may end in a partial huge page, whose rest is not guest memory.
            let run = run.start..run.end.min(self.delta.len());
            let mut at = run.start;
            while at < run.end {
                let len = (run.end - at).min(PIECE);
                let piece = self.buffer.get_mut(..len).unwrap_or_default();
                self.mapping.read(at, piece).asked("reading guest memory")?;
                self.delta.write(at, piece)?;
                at += len;
            }
            self.copied.push(frames_of(&run));
        }
        Ok(())
    }

    /// The image: the copied pages, over the previous image if there is one. Stops tracking.
    pub(super) fn image(self, layout: &MemoryLayout) -> Result<SnapshotMemory, Error> {
        let Self { image, tracker, delta, copied, .. } = self;
        drop(tracker);
        match image {
            Some(image) => image.with(delta, runs::normal(copied)),
            None => SnapshotMemory::new(layout.clone(), Arc::new(delta)),
        }
    }
}
