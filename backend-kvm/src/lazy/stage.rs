//! Pages that clones of one parent on this host share, each of which is fetched and kept once.

use crate::error::{Asked, KvmError};
use crate::memory::{ContentStore, MemoryFile, Pins};
use crate::sys::{Mapping, Sharing};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::fingerprint::{Domain, Fingerprints};
use kaleidoscope_core::memory::{MemoryLayout, Page};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages of one frozen parent, in memory that all of its clones on this host map.
///
/// A page that is here is no longer a fault for any of them: the kernel maps it. Nor is one that the host's content store has when the
/// stage is made, and that the clones map from there ([`sharing`](Self::sharing)).
#[derive(Debug)]
pub struct Stage {
    layout: MemoryLayout,
    file: MemoryFile,
    /// What is mapped from the store. Mappings have it too: it is unpinned when the last is unmapped.
    pins: Option<Arc<Pins>>,
    /// Frames that somebody has put here or is about to, a bit each.
    taken: Vec<AtomicU64>,
}

impl Stage {
    /// An empty stage for a guest of this layout.
    ///
    /// # Errors
    /// [`KvmError::Refused`] when the system has no memory to give.
    pub fn new(layout: MemoryLayout) -> Result<Arc<Self>, KvmError> {
        Self::with(layout, None)
    }

    /// A stage on which are the frames whose pages are in a content store right now, as the fingerprints of the parent's host say: clones
    /// map them from the store, copy on write. They are not fetched, and take no memory of the stage. They are pinned in the store
    /// until the stage and all its clones are gone, in at most 128 runs, the longest first.
    ///
    /// The parent's bytes are not on this host: a page is taken for a frame's because it has the frame's fingerprint, 128 bits of a hash under
    /// the tenant's key. With the tenant's `domain`, the bytes of each page that is to be mapped are hashed here once more, and a page
    /// that has others is fetched instead; without, whoever put the page into the store vouches for it.
    ///
    /// # Errors
    /// [`KvmError::State`] when the fingerprints are of another guest or another domain; [`KvmError::Refused`] when the system has no memory to
    /// give, or the store cannot be read.
    pub fn sharing(
        layout: MemoryLayout,
        store: &Arc<ContentStore>,
        fingerprints: &Fingerprints,
        domain: Option<&Domain>,
    ) -> Result<Arc<Self>, KvmError> {
        if fingerprints.frames() != layout.frames() {
            return Err(KvmError::State("the fingerprints are of another guest".into()));
        }
        if domain.is_some_and(|domain| domain.id() != fingerprints.domain()) {
            return Err(KvmError::State("the fingerprints are of another domain".into()));
        }
        let wanted = fingerprints.iter().map(|(frame, key)| (frame.0, key));
        let pins = Pins::found(store, wanted, domain)?;
        Self::with(layout, Some(Arc::new(pins)))
    }

    fn with(layout: MemoryLayout, pins: Option<Arc<Pins>>) -> Result<Arc<Self>, KvmError> {
        let frames = layout.frames();
        let file = MemoryFile::new(frames as usize * FRAME_BYTES)?;
        let taken = (0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let stage = Self { layout, file, pins, taken };
        for frame in stage.shared().into_iter().flatten().map(FrameIndex) {
            stage.take(frame);
        }
        Ok(Arc::new(stage))
    }

    /// Frames that are mapped from the content store, in order.
    #[must_use]
    pub fn shared(&self) -> Vec<Range<u32>> {
        self.pins.as_ref().map_or_else(Vec::new, |pins| pins.runs())
    }

    /// Bytes of memory that it takes, those of the content store not, as the kernel counts them.
    ///
    /// # Errors
    /// [`KvmError::Refused`] when the kernel does not say.
    pub fn taken(&self) -> Result<u64, KvmError> {
        self.file.taken()
    }

    pub(super) fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// A mapping for one more clone.
    pub(super) fn map(&self) -> Result<Mapping, KvmError> {
        let mapping = Mapping::of_file(self.file.as_fd(), self.file.len(), Sharing::Private);
        let mapping = mapping.asked("mapping a clone's memory")?;
        let Some(pins) = &self.pins else { return Ok(mapping) };
        let mapping = mapping.keeping(Arc::clone(pins) as _);
        for run in pins.runs() {
            mapping.overlay(pins.part(&run)).asked("mapping a clone's memory")?;
        }
        Ok(mapping)
    }

    /// Takes it on oneself to put a page here; `false` when somebody else has.
    fn take(&self, frame: FrameIndex) -> bool {
        let bit = 1 << (frame.0 % 64);
        let word = self.taken.get(frame.as_usize() / 64);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }

    /// Whether somebody has put a page here, or is about to.
    pub(super) fn has(&self, frame: FrameIndex) -> bool {
        let word = self.taken.get(frame.as_usize() / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) & 1 << (frame.0 % 64) != 0)
    }

    /// Puts a page here; `false` when somebody else has, or does. A clone sees all of it or none: the kernel keeps a page that is
    /// being written locked.
    pub(super) fn put(&self, frame: FrameIndex, page: &Page) -> Result<bool, KvmError> {
        // Whoever comes second has the same bytes, and need not wait: its clone faults once more if the page is not here yet.
        if !self.take(frame) {
            return Ok(false);
        }
        let written = self.file.write(frame.as_usize() * FRAME_BYTES, page);
        if written.is_err()
            && let Some(word) = self.taken.get(frame.as_usize() / 64)
        {
            // Another clone may have more luck.
            word.fetch_and(!(1 << (frame.0 % 64)), Ordering::AcqRel);
        }
        written.map(|()| true)
    }
}
