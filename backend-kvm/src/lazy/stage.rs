//! Pages that clones of one parent on this host share, each of which is fetched and kept once.

use crate::error::{Asked, KvmError};
use crate::memory::MemoryFile;
use crate::sys::{Mapping, Sharing};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::memory::{MemoryLayout, Page};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages of one frozen parent, in memory that all of its clones on this host map.
///
/// A page that is here is no longer a fault for any of them: the kernel maps it.
#[derive(Debug)]
pub struct Stage {
    layout: MemoryLayout,
    file: MemoryFile,
    /// Frames that somebody has put here or is about to, a bit each.
    taken: Vec<AtomicU64>,
}

impl Stage {
    /// An empty stage for a guest of this layout.
    ///
    /// # Errors
    /// [`KvmError::Refused`] when the system has no memory to give.
    pub fn new(layout: MemoryLayout) -> Result<Arc<Self>, KvmError> {
        let frames = layout.frames();
        let file = MemoryFile::new(frames as usize * FRAME_BYTES)?;
        let taken = (0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Arc::new(Self { layout, file, taken }))
    }

    /// Bytes of memory that it takes, as the kernel counts them.
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
        Mapping::of_file(self.file.as_fd(), self.file.len(), Sharing::Private)
            .asked("mapping a clone's memory")
    }

    /// Whether somebody has put a page here, or is about to.
    pub(super) fn has(&self, frame: FrameIndex) -> bool {
        let word = self.taken.get(frame.as_usize() / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) & 1 << (frame.0 % 64) != 0)
    }

    /// Puts a page here; `false` when somebody else has, or does. A clone sees all of it or none: the kernel keeps a page that is
    /// being written locked.
    pub(super) fn put(&self, frame: FrameIndex, page: &Page) -> Result<bool, KvmError> {
        let bit = 1 << (frame.0 % 64);
        let word = self.taken.get(frame.as_usize() / 64);
        // Whoever comes second has the same bytes, and need not wait: its clone faults once more if the page is not here yet.
        let Some(word) = word.filter(|word| word.fetch_or(bit, Ordering::AcqRel) & bit == 0) else {
            return Ok(false);
        };
        let written = self.file.write(frame.as_usize() * FRAME_BYTES, page);
        // Another clone may have more luck.
        if written.is_err() {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
        written?;
        Ok(true)
    }
}
