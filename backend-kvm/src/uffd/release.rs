//! Memory of machines: mapped for a clone, and released once it needs no handler.

use super::SharedPageCache;
use super::memory::UserfaultMemory;
use super::running::{OnDemand, Running};
use crate::error::{Asked, Error, ErrorKind};
use crate::memory::{PageSize, SnapshotMemory, bytes_of, frames_of, runs};
use crate::sys::{Mapping, own_pages, zero_pages};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use std::sync::Arc;

impl OnDemand {
    /// Memory for the clone, without any pages yet.
    pub(crate) fn map(&self) -> Result<Arc<Mapping>, Error> {
        let layout = self.locality.map().layout();
        match &self.cache {
            Some(_) if self.pages != PageSize::Small => {
                Err(Error::input("a cache is of 4 KiB pages"))
            }
            Some(cache) if cache.layout() == layout => {
                let free_frames = self.options.free_frames;
                let free_frames = free_frames.for_source(self.locality.map(), &*self.source);
                Ok(Arc::new(cache.admit(&self.locality, free_frames)?))
            }
            Some(_) => Err(Error::input("the cache is of another guest")),
            None => {
                let bytes = self.pages.round_up(layout.frames() as usize * FRAME_BYTES);
                let mapping = Mapping::anonymous(bytes, self.pages);
                Ok(Arc::new(mapping.asked("mapping a clone's memory")?))
            }
        }
    }
}

impl Running {
    /// Lets go of memory that has every frame: the machine needs no handler from here on. Where
    /// pages of it were staged, the image that its memory is now a private mapping of.
    ///
    /// # Errors
    /// [`ErrorKind::NotComplete`] when frames are missing; [`ErrorKind::InvalidState`] when the
    /// guest of a clone on a cache gave some back.
    pub(crate) fn release(&self) -> Result<Option<Arc<SnapshotMemory>>, Error> {
        if !self.engine.is_whole() {
            return Err(Error::new(
                ErrorKind::NotComplete,
                "the clone cannot be snapshotted: pages of it are missing; Background::Full \
                 fetches all of them",
            ));
        }
        // A cache that is snapshot has zeros for all clones where this one has them, and no page.
        if self.pages.has_cache() && self.engine.has_given_back() {
            return Err(Error::state(
                "the clone cannot be snapshotted: its guest gave memory back, which its siblings \
                 on the cache may need",
            ));
        }
        self.pages.release()
    }
}

impl UserfaultMemory {
    /// Whether pages of it are shared with siblings.
    pub(crate) fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// Bytes of all frames.
    pub(super) fn bytes(&self) -> usize {
        self.shards.last().map_or(0, |shard| shard.frames.end as usize * FRAME_BYTES)
    }

    /// Makes the cache a snapshot image; the clone's memory is then a private mapping of it. Every
    /// frame is resident.
    fn freeze_cache(
        &self,
        cache: &SharedPageCache,
    ) -> Result<(Arc<SnapshotMemory>, &Mapping), Error> {
        let whole = |mapping: &&Arc<Mapping>| mapping.len() == self.bytes();
        let mapping = self.shards.first().and_then(|first| first.mapping.as_ref()).filter(whole);
        let Some(mapping) = mapping else {
            return Err(Error::state(
                "the clone cannot be snapshotted: its memory is not one mapping of its cache",
            ));
        };
        let image = cache.freeze(|| {
            let looking = "looking for what a clone has (Linux 6.7 or later)";
            let own = own_pages(mapping).supported(looking)?;
            let zeros = zero_pages(mapping).supported(looking)?;
            Ok(runs::normal(own.iter().chain(&zeros).map(frames_of).collect()))
        });
        Ok((image?, mapping))
    }

    /// Stops watching the memory. Every frame is resident or reads as zeros, so the kernel resolves
    /// all later faults. Returns the image that the memory is a private mapping of from now on, for
    /// a clone on a cache.
    pub(crate) fn release(&self) -> Result<Option<Arc<SnapshotMemory>>, Error> {
        let Some(cache) = &self.cache else { return self.unwatch().map(|()| None) };
        let (image, mapping) = self.freeze_cache(cache)?;
        self.unwatch()?;
        // A frame that was filled with zeros just before a sibling put its page into the cache is
        // zeros for this clone, and not for its snapshot.
        for run in zero_pages(mapping).supported("looking for what a clone has")? {
            for frame in frames_of(&run).filter(|frame| cache.has(FrameIndex(*frame))) {
                let own = mapping.populate(bytes_of(&(frame..frame + 1)));
                own.asked("giving a clone memory of its own")?;
            }
        }
        Ok(Some(image))
    }
}
