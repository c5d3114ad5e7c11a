//! What is done for a freeze while the machine runs, so that little is left for its pause.

use super::file::{MemoryFile, frames_of};
use super::{SnapshotMemory, bytes, runs};
use crate::error::{Asked, KvmError};
use crate::sys::{Mapping, Tracker};
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::memory::MemoryLayout;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that are copied at once: all of a level-2 cache's share.
const PIECE: usize = 256 << 10;

/// A pass this short leaves as little to do for the pause: a quarter of what a freeze of the
/// smallest machine may take.
const SHORT: Duration = Duration::from_micros(500);

/// Passes at most: each of them slows the guest a little, and one that undoes them as fast as they
/// are made would never be paused.
const PASSES: usize = 6;

/// What a machine's RAM was prepared for.
pub(crate) enum Prepared {
    /// Its mapping of this file is shared, and becomes private.
    Flip(Arc<MemoryFile>),
    /// Its mapping is private, and what is in it is copied.
    Copying(Copying),
}

/// The copying of what a machine wrote since its image, or of all that it has.
pub(crate) struct Copying {
    /// None when all of it is copied.
    image: Option<Arc<SnapshotMemory>>,
    mapping: Arc<Mapping>,
    tracker: Tracker,
    delta: MemoryFile,
    copied: Vec<Range<u32>>,
    buffer: Vec<u8>,
}

/// Does again what the running machine undoes, which is less each time, until a pass is short.
pub(super) fn until_short(mut pass: impl FnMut() -> Result<(), KvmError>) -> Result<(), KvmError> {
    for _ in 0..PASSES {
        let start = Instant::now();
        pass()?;
        if start.elapsed() < SHORT {
            break;
        }
    }
    Ok(())
}

impl Copying {
    /// Of a mapping, with what differs from the image, or with all of it.
    pub(super) fn new(
        layout: &MemoryLayout,
        mapping: &Arc<Mapping>,
        image: Option<Arc<SnapshotMemory>>,
    ) -> Result<Self, KvmError> {
        let tracker = Tracker::new(Arc::clone(mapping));
        Ok(Self {
            image,
            mapping: Arc::clone(mapping),
            tracker: tracker.asked(
                "tracking a machine's writes (Linux 6.7 or later, and the right to use userfaultfd)",
            )?,
            delta: MemoryFile::new(bytes(layout))?,
            copied: Vec::new(),
            buffer: vec![0; PIECE],
        })
    }

    /// Copies what the mapping has of its own; what is written from here on is told from it.
    pub(super) fn begin(&mut self) -> Result<(), KvmError> {
        let own = self.tracker.begin().asked("tracking what a machine writes")?;
        self.copy(&own)
    }

    /// Copies everything; what is written from here on is told from it.
    pub(super) fn begin_with_all(&mut self) -> Result<(), KvmError> {
        self.tracker.begin().asked("tracking what a machine writes")?;
        let mut at = 0;
        let end = self.delta.len();
        while at < end {
            let piece = at..at.saturating_add(PIECE).min(end);
            let buffer = self.buffer.get_mut(..piece.len()).unwrap_or_default();
            self.mapping.read(at, buffer).asked("reading guest memory")?;
            for (n, page) in buffer.chunks(FRAME_BYTES).enumerate() {
                // The file has zeros already, and takes no memory for them.
                if page.iter().any(|byte| *byte != 0) {
                    self.delta.write(at + n * FRAME_BYTES, page)?;
                }
            }
            at = piece.end;
        }
        Ok(())
    }

    /// Copies what was written since.
    pub(super) fn go_on(&mut self) -> Result<(), KvmError> {
        let written = self.tracker.written().asked("looking for what a machine wrote")?;
        self.copy(&written)
    }

    /// The same for the last time, when nobody writes any more.
    pub(super) fn finish(&mut self) -> Result<(), KvmError> {
        let written = self.tracker.last_written().asked("looking for what a machine wrote")?;
        self.copy(&written)
    }

    fn copy(&mut self, found: &[Range<usize>]) -> Result<(), KvmError> {
        for run in found {
            // The rest of a last page that is huge is nobody's.
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

    /// What was copied, over the image if there is one. Writes are not tracked any more.
    pub(super) fn image(self, layout: &MemoryLayout) -> Result<SnapshotMemory, KvmError> {
        let Self { image, tracker, delta, copied, .. } = self;
        drop(tracker);
        match image {
            Some(image) => image.with(delta, runs::normal(copied)),
            None => SnapshotMemory::new(layout.clone(), Arc::new(delta)),
        }
    }
}
