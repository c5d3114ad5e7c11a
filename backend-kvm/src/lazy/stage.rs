//! Pages that clones of one parent on this host share, each of which is fetched and kept once.

use super::bits::FrameBits;
use crate::error::{Asked, KvmError};
use crate::memory::{ContentStore, FrozenImage, MemoryFile, Pins};
use crate::sys::{Mapping, Sharing};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::FreeFrames;
use kaleidoscope_core::fingerprint::{Domain, Fingerprints};
use kaleidoscope_core::memory::{MemoryLayout, Page};
use kaleidoscope_core::prefetch::Atlas;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than anybody takes to write one page.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pages of one frozen parent, in memory that all of its clones on this host map.
///
/// A page that is here is no longer a fault for any of them: the kernel maps it. Nor is one that the host's content store has when the
/// stage is made, and that the clones map from there ([`sharing`](Self::sharing)).
///
/// When one of the clones that has every frame is frozen, the stage becomes an image: what is not here by then is zeros, for all of them.
#[derive(Debug)]
pub struct Stage {
    layout: MemoryLayout,
    file: Arc<MemoryFile>,
    /// What is mapped from the store. Mappings have it too: it is unpinned when the last is unmapped.
    pins: Option<Arc<Pins>>,
    /// Frames that somebody has put here or is about to.
    taken: FrameBits,
    /// Frames whose bytes are here.
    there: FrameBits,
    audience: Mutex<Audience>,
}

/// What a stage's clones do without.
#[derive(Debug)]
struct Audience {
    without: Without,
    /// What the stage was when a clone on it was frozen.
    image: Option<Arc<FrozenImage>>,
    /// Nothing is put here any more.
    is_sealed: bool,
}

/// Frames that clones fill with zeros, whatever the parent's bytes are.
#[derive(Debug)]
enum Without {
    /// There were no clones yet.
    Unknown,
    /// None.
    Nothing,
    /// Those that are free in this map.
    Free(Arc<Atlas>),
    /// Others for each of them.
    Various,
}

/// What came of putting a page on a stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Put {
    /// It is there.
    New,
    /// Somebody else has put it there, or does.
    Known,
    /// The stage has become an image, in which the frame is zeros: its page is, or nobody needs it.
    Sealed,
}

impl Without {
    /// What clones do without that do as is said.
    fn of(atlas: &Arc<Atlas>, free: FreeFrames) -> Self {
        match free {
            FreeFrames::Fetch => Self::Nothing,
            FreeFrames::Zero => Self::Free(Arc::clone(atlas)),
        }
    }

    fn is_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nothing, Self::Nothing) => true,
            (Self::Free(a), Self::Free(b)) => {
                Arc::ptr_eq(a, b) || a.map().colors() == b.map().colors()
            }
            (Self::Unknown | Self::Nothing | Self::Free(_) | Self::Various, _) => false,
        }
    }

    fn has(&self, frame: FrameIndex) -> bool {
        matches!(self, Self::Free(atlas) if atlas.is_free(frame))
    }
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
        let stage = Self {
            file: Arc::new(MemoryFile::new(frames as usize * FRAME_BYTES)?),
            pins,
            taken: FrameBits::new(frames),
            there: FrameBits::new(frames),
            audience: Mutex::new(Audience {
                without: Without::Unknown,
                image: None,
                is_sealed: false,
            }),
            layout,
        };
        for frame in stage.shared().into_iter().flatten().map(FrameIndex) {
            stage.taken.set(frame);
            stage.there.set(frame);
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

    /// A mapping for one more clone, and what that will do without.
    ///
    /// # Errors
    /// [`KvmError::State`] when the stage has become an image, and the clone needs frames that are zeros in it.
    pub(super) fn admit(&self, atlas: &Arc<Atlas>, free: FreeFrames) -> Result<Mapping, KvmError> {
        let wish = Without::of(atlas, free);
        let mut audience = self.audience.lock();
        if matches!(audience.without, Without::Unknown) {
            audience.without = wish;
        } else if !audience.without.is_the_same(&wish) {
            if audience.is_sealed {
                let what = "the stage was frozen with clones that did without other free frames";
                return Err(KvmError::State(what.into()));
            }
            audience.without = Without::Various;
        }
        drop(audience);
        self.map()
    }

    /// A mapping of what is here.
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

    /// Whether somebody has put a page here, or is about to.
    pub(super) fn has(&self, frame: FrameIndex) -> bool {
        self.taken.has(frame)
    }

    /// Puts a page here. A clone sees all of it or none: the kernel keeps a page that is being written locked.
    pub(super) fn put(&self, frame: FrameIndex, page: &Page) -> Result<Put, KvmError> {
        // Whoever comes second has the same bytes, and need not wait: its clone faults once more if the page is not here yet.
        if !self.taken.set(frame) {
            return Ok(Put::Known);
        }
        let written = self.file.write(frame.as_usize() * FRAME_BYTES, page);
        if written.is_ok() {
            self.there.set(frame);
            return Ok(Put::New);
        }
        // Another clone may have more luck.
        self.taken.clear(frame);
        match written {
            Err(KvmError::Refused { source: Errno::PERM, .. }) if self.is_sealed() => {
                Ok(Put::Sealed)
            }
            other => other.map(|()| Put::New),
        }
    }

    fn is_sealed(&self) -> bool {
        self.audience.lock().is_sealed
    }

    /// Makes the stage an image, in which frames that are not here are zeros: `kept` are those that a clone of the stage, which has every
    /// frame, has in memory of its own or as zeros. That clone got the others from here, or does without them.
    ///
    /// A frame that the clone got as zeros has a page of zeros. So what is not here is zeros for every clone of the stage that does
    /// without the same frames as this one, and a page that comes for one of them later is told so ([`Put::Sealed`]).
    ///
    /// # Errors
    /// [`KvmError::NotWhole`] when the stage's clones do without different frames, or a frame that this one has is not here, for lack of memory
    /// say; [`KvmError::Refused`] when the system refuses.
    pub(super) fn freeze(&self, kept: &[Range<u32>]) -> Result<Arc<FrozenImage>, KvmError> {
        let mut audience = self.audience.lock();
        if let Some(image) = &audience.image {
            return Ok(Arc::clone(image));
        }
        if matches!(audience.without, Without::Various) {
            return Err(KvmError::NotWhole(
                "clones on its stage do not agree about which frames are free",
            ));
        }
        let mut kept = kept.iter().cloned().peekable();
        for frame in (0..self.layout.frames()).map(FrameIndex) {
            while kept.next_if(|run| run.end <= frame.0).is_some() {}
            let is_kept = kept.peek().is_some_and(|run| run.contains(&frame.0));
            if !is_kept && !audience.without.has(frame) {
                self.wait_for(frame)?;
            }
        }
        // Who is told that it may not write asks why.
        audience.is_sealed = true;
        self.file.seal()?;
        let file = Arc::clone(&self.file);
        let image = FrozenImage::staged(self.layout.clone(), file, self.pins.clone())?;
        let image = Arc::new(image);
        audience.image = Some(Arc::clone(&image));
        Ok(image)
    }

    /// Waits until a page that is being put here is here.
    fn wait_for(&self, frame: FrameIndex) -> Result<(), KvmError> {
        let mut since = None;
        while !self.there.has(frame) {
            let start = *since.get_or_insert_with(Instant::now);
            if !self.taken.has(frame) || start.elapsed() > PATIENCE {
                return Err(KvmError::NotWhole("a page of it could not be kept on its stage"));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Whether a frame's bytes are here.
    pub(super) fn is_there(&self, frame: FrameIndex) -> bool {
        self.there.has(frame)
    }
}
