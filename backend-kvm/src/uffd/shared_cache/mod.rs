//! Pages that the clones of one parent on this host share. Each is fetched and stored once.

#[cfg(test)]
mod tests;

use super::frame_set::FrameSet;
use super::page_writer::AtomicPageWriter;
use crate::error::{Asked, Error, ErrorKind};
use crate::memory::{ContentStore, MemoryFile, Pins, SnapshotMemory, bytes};
use crate::sys::{Mapping, Sharing};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::FreeFrames;
use kaleidoscope_core::clone::ports::Installed;
use kaleidoscope_core::fingerprint::{Domain, Fingerprints};
use kaleidoscope_core::memory::{MemoryLayout, Page};
use kaleidoscope_core::prefetch::LocalityOrder;
use parking_lot::{Mutex, RwLock};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Pages of one snapshot parent, in memory that all of its clones on this host map, in this process
/// and in others ([`file`](Self::file), [`join`](Self::join)).
///
/// A page that is here is no longer a fault for any of them: the kernel maps it. Nor is one that
/// the host's content store has when the cache is made, and that the clones map from there
/// ([`sharing`](Self::sharing)).
///
/// When one of the clones that has every frame is snapshot, the cache becomes an image: what is not
/// here by then is zeros, for all of them.
#[derive(Debug)]
pub struct SharedPageCache {
    layout: MemoryLayout,
    pub(super) file: Arc<MemoryFile>,
    /// What is mapped from the store. Mappings have it too: it is unpinned when the last is
    /// unmapped.
    pins: Option<Arc<Pins>>,
    /// Frames whose bytes are here, as far as this process knows.
    there: FrameSet,
    /// By which pages come; none when no more do.
    page_writer: RwLock<Option<AtomicPageWriter>>,
    users: Mutex<CacheUsers>,
}

/// What is known of a cache's clones.
#[derive(Debug)]
struct CacheUsers {
    without: ZeroedFrames,
    /// What the cache was when a clone on it was snapshotted.
    image: Option<Arc<SnapshotMemory>>,
}

/// Frames that clones fill with zeros, whatever the parent's bytes are.
#[derive(Debug)]
enum ZeroedFrames {
    /// There were no clones yet.
    Unknown,
    /// None.
    Nothing,
    /// Those that are free in this map.
    Free(Arc<LocalityOrder>),
    /// Others for each of them, or some of them are in other processes.
    Various,
}

/// What came of putting a page on a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Put {
    /// It is there.
    New,
    /// It was there.
    Known,
    /// Not now.
    Again,
    /// The cache has become an image in which the frame is zeros: either its page is all zeros, or
    /// no clone needs it.
    Sealed,
}

impl ZeroedFrames {
    /// What clones do without that do as is said.
    fn of(locality: &Arc<LocalityOrder>, free: FreeFrames) -> Self {
        match free.allowed_by(locality.map()) {
            FreeFrames::Auto | FreeFrames::Fetch => Self::Nothing,
            FreeFrames::Zero => Self::Free(Arc::clone(locality)),
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
        matches!(self, Self::Free(locality) if locality.is_free(frame))
    }
}

impl SharedPageCache {
    /// An empty cache for a guest of this layout.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when the system is out of memory, [`ErrorKind::Unavailable`] without
    /// the right to use userfaultfd.
    pub fn new(layout: MemoryLayout) -> Result<Arc<Self>, Error> {
        Self::with(layout, None)
    }

    /// A cache on which are the frames whose pages are in a content store right now, as the
    /// fingerprints of the parent's host say: clones map them from the store, copy on write.
    /// They are not fetched, and take no memory of the cache. They are pinned in the store
    /// until the cache and all its clones are gone, in at most 128 runs, the longest first.
    ///
    /// The parent's bytes are not on this host: a page is taken for a frame's because it has the
    /// frame's fingerprint, 128 bits of a hash under the tenant's key. With the tenant's
    /// `domain`, the bytes of each page that is to be mapped are hashed here once more, and a page
    /// that has others is fetched instead; without, the program that put the page into the
    /// store is trusted.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the fingerprints are of another guest or another domain;
    /// [`ErrorKind::Refused`] when the system has no memory to give, or the store cannot be
    /// read.
    pub fn sharing(
        layout: MemoryLayout,
        store: &Arc<ContentStore>,
        fingerprints: &Fingerprints,
        domain: Option<&Domain>,
    ) -> Result<Arc<Self>, Error> {
        if fingerprints.frames() != layout.frames() {
            return Err(Error::input("the fingerprints are of another guest"));
        }
        if domain.is_some_and(|domain| domain.id() != fingerprints.domain()) {
            return Err(Error::input("the fingerprints are of another domain"));
        }
        let wanted = fingerprints.iter().map(|(frame, key)| (frame.0, key));
        let pins = Pins::found(store, wanted, domain)?;
        Self::with(layout, Some(Arc::new(pins)))
    }

    fn with(layout: MemoryLayout, pins: Option<Arc<Pins>>) -> Result<Arc<Self>, Error> {
        let file = MemoryFile::new(bytes(&layout))?;
        Self::on(layout, file, pins, ZeroedFrames::Unknown)
    }

    fn on(
        layout: MemoryLayout,
        file: MemoryFile,
        pins: Option<Arc<Pins>>,
        without: ZeroedFrames,
    ) -> Result<Arc<Self>, Error> {
        let cache = Self {
            there: FrameSet::new(layout.frames()),
            page_writer: RwLock::new(Some(AtomicPageWriter::new(&file)?)),
            users: Mutex::new(CacheUsers { without, image: None }),
            file: Arc::new(file),
            layout,
            pins,
        };
        for frame in cache.shared().into_iter().flatten().map(FrameIndex) {
            cache.there.set(frame);
        }
        Ok(Arc::new(cache))
    }

    /// The cache's memory, for another process of this host that [joins](Self::join) it: over a
    /// Unix socket, say, or as a descriptor that it inherits. What is shown from a content
    /// store is not part of it.
    ///
    /// A page that any of the processes fetched is there for the clones of all of them, until the
    /// last has gone; one that is killed leaves whole pages. A process with the
    /// descriptor can read the parent's memory, and put wrong pages there. Clones on a cache that
    /// others may have joined cannot be snapshot: what those do without is not known.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] when the cache has become an image of a clone.
    pub fn file(&self) -> Result<BorrowedFd<'_>, Error> {
        let mut users = self.users.lock();
        if self.is_sealed() {
            return Err(Error::state("the cache was snapshotted with a clone"));
        }
        users.without = ZeroedFrames::Various;
        Ok(self.file.as_fd())
    }

    /// The cache that another process of this host has, from what its [`file`](Self::file) is;
    /// `layout` is the parent's.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when this is not the memory of a cache of that layout;
    /// [`ErrorKind::Refused`] as for [`new`](Self::new).
    pub fn join(layout: MemoryLayout, file: OwnedFd) -> Result<Arc<Self>, Error> {
        let unfit = |why: &str| Error::input(format!("not the memory of a cache: {why}"));
        let file = MemoryFile::of_others(file)?.map_err(|error| unfit(&error.to_string()))?;
        if file.len() != bytes(&layout) {
            return Err(unfit(&format!(
                "it has {} bytes, and the guest {}",
                file.len(),
                layout.bytes()
            )));
        }
        Self::on(layout, file, None, ZeroedFrames::Various)
    }

    /// Frames that are mapped from the content store, in order.
    #[must_use]
    pub fn shared(&self) -> Vec<Range<u32>> {
        self.pins.as_ref().map_or_else(Vec::new, |pins| pins.runs())
    }

    /// Bytes of memory that it takes, those of the content store not, as the kernel counts them.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when the kernel does not say.
    pub fn taken(&self) -> Result<u64, Error> {
        self.file.taken()
    }

    pub(super) fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// A mapping for one more clone, and what that will do without.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] when the cache has become an image, and the clone needs frames
    /// that are zeros in it.
    pub(super) fn admit(
        &self,
        locality: &Arc<LocalityOrder>,
        free: FreeFrames,
    ) -> Result<Mapping, Error> {
        let wish = ZeroedFrames::of(locality, free);
        let mut users = self.users.lock();
        if matches!(users.without, ZeroedFrames::Unknown) {
            users.without = wish;
        } else if !users.without.is_the_same(&wish) {
            if self.is_sealed() {
                let what =
                    "the cache was snapshotted with clones that did without other free frames";
                return Err(Error::state(what));
            }
            users.without = ZeroedFrames::Various;
        }
        drop(users);
        self.map()
    }

    /// A mapping of what is here.
    pub(super) fn map(&self) -> Result<Mapping, Error> {
        let mapping = Mapping::of_file(self.file.as_fd(), self.file.len(), Sharing::Private);
        let mapping = mapping.asked("mapping a clone's memory")?;
        let Some(pins) = &self.pins else { return Ok(mapping) };
        for run in pins.runs() {
            mapping.overlay(pins.part(&run)).asked("mapping a clone's memory")?;
        }
        Ok(mapping)
    }

    /// Whether a page is here, as far as this process knows.
    pub(super) fn has(&self, frame: FrameIndex) -> bool {
        self.there.has(frame)
    }

    /// Puts a page here.
    pub(super) fn put(&self, frame: FrameIndex, page: &Page) -> Result<Put, Error> {
        if self.there.has(frame) {
            return Ok(Put::Known);
        }
        let page_writer = self.page_writer.read();
        let Some(page_writer) = &*page_writer else {
            // It may have come just before.
            return Ok(if self.there.has(frame) { Put::Known } else { Put::Sealed });
        };
        let put = match page_writer.put(frame, page)? {
            Installed::Installed => Put::New,
            Installed::AlreadyPresent => Put::Known,
            Installed::TryAgain => return Ok(Put::Again),
        };
        self.there.set(frame);
        Ok(put)
    }

    fn is_sealed(&self) -> bool {
        self.page_writer.read().is_none()
    }

    /// Makes the cache an image, in which frames that are not here are zeros. `kept` says which
    /// frames a clone of the cache has in memory of its own or as zeros; it has every frame,
    /// and got the others from here, or does without them.
    ///
    /// A frame that the clone got as zeros has a page of zeros: none was given back. So what is not
    /// here is zeros for every clone of the cache that does without the same frames as this
    /// one, and a thread that brings a page later is told so ([`Put::Sealed`]).
    ///
    /// # Errors
    /// [`ErrorKind::NotComplete`] when a frame is not here; [`ErrorKind::InvalidState`] when the
    /// cache's clones do without different frames, or are not all known; [`ErrorKind::Refused`]
    /// when the system refuses.
    pub(super) fn freeze(
        &self,
        kept: impl FnOnce() -> Result<Vec<Range<u32>>, Error>,
    ) -> Result<Arc<SnapshotMemory>, Error> {
        let mut users = self.users.lock();
        if let Some(image) = &users.image {
            return Ok(Arc::clone(image));
        }
        if matches!(users.without, ZeroedFrames::Various) {
            return Err(Error::state(
                "the clone cannot be snapshotted: the clones on its cache do not agree about which \
                 frames are free, or are of several processes",
            ));
        }
        let mut kept = kept()?.into_iter().peekable();
        for frame in (0..self.layout.frames()).map(FrameIndex) {
            while kept.next_if(|run| run.end <= frame.0).is_some() {}
            let is_kept = kept.peek().is_some_and(|run| run.contains(&frame.0));
            if !is_kept && !users.without.has(frame) && !self.there.has(frame) {
                return Err(Error::new(
                    ErrorKind::NotComplete,
                    "the clone cannot be snapshotted: a page of it is not on its cache",
                ));
            }
        }
        // The last mapping that could write to the file.
        *self.page_writer.write() = None;
        self.file.seal()?;
        let file = Arc::clone(&self.file);
        let image = SnapshotMemory::staged(self.layout.clone(), file, self.pins.clone())?;
        let image = Arc::new(image);
        users.image = Some(Arc::clone(&image));
        Ok(image)
    }
}
