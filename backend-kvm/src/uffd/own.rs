//! Memory of this process: what its owner can do with it beside filling it.

use super::SharedPageCache;
use super::memory::UserfaultMemory;
use crate::error::{Asked, KvmError};
use crate::memory::{SnapshotMemory, bytes_of, frames_of, runs};
use crate::sys::{Mapping, own_pages, zero_pages};
use kaleidoscope_core::addr::FrameIndex;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl UserfaultMemory {
    /// Whether pages of it are shared with siblings.
    pub(crate) fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// Makes the clone's frames in the cache a snapshot, of which its memory is then a private
    /// mapping. Every frame is resident.
    fn freeze_cache(
        &self,
        cache: &SharedPageCache,
    ) -> Result<(Arc<SnapshotMemory>, &Mapping), KvmError> {
        let whole = |mapping: &&Arc<Mapping>| mapping.len() == self.bytes();
        let mapping = self.shards.first().and_then(|first| first.mapping.as_ref()).filter(whole);
        let Some(mapping) = mapping else {
            return Err(KvmError::NotWhole("its memory is not one mapping of its cache"));
        };
        let image = cache.freeze(|| {
            let looking = "looking for what a clone has (Linux 6.7 or later)";
            let own = own_pages(mapping).asked(looking)?;
            let zeros = zero_pages(mapping).asked(looking)?;
            Ok(runs::normal(own.iter().chain(&zeros).map(frames_of).collect()))
        });
        Ok((image?, mapping))
    }

    /// Ceases to watch the memory, every frame of which is resident or zeros: a fault on zeros is
    /// the kernel's from here on. Returns the snapshot that the memory is a private mapping of from
    /// here on, where it was on a cache.
    pub(crate) fn release(&self) -> Result<Option<Arc<SnapshotMemory>>, KvmError> {
        let Some(cache) = &self.cache else { return self.unwatch().map(|()| None) };
        let (image, mapping) = self.freeze_cache(cache)?;
        self.unwatch()?;
        // A frame that was filled with zeros just before a sibling put its page into the cache is
        // zeros for this clone, and not for its snapshot.
        for run in zero_pages(mapping).asked("looking for what a clone has")? {
            for frame in frames_of(&run).filter(|frame| cache.has(FrameIndex(*frame))) {
                let own = mapping.populate(bytes_of(&(frame..frame + 1)));
                own.asked("giving a clone memory of its own")?;
            }
        }
        Ok(Some(image))
    }

    fn unwatch(&self) -> Result<(), KvmError> {
        if let Some(blocks) = &self.blocks {
            // Huge pages whose free frames were not touched.
            let completed = blocks.complete(|start, bytes| {
                let (shard, _) = self.shard(FrameIndex(start)).map_err(|_| Errno::INVAL)?;
                shard.fill(start, bytes)
            });
            completed.asked("completing a clone's huge pages")?;
        }
        self.released.store(true, Ordering::Release);
        self.shards.iter().try_for_each(|shard| {
            let done = shard.descriptor.unregister(shard.addresses());
            done.asked("ceasing to watch a clone's memory")
        })
    }

    /// Takes the memory from the guest for good: any touch is an error from here on, never a page
    /// that is not the parent's. A vCPU that waits for a page gets that error. Memory of another
    /// owner cannot be taken: its vCPUs go on waiting.
    pub(crate) fn revoke(&self) {
        if self.revoked.swap(true, Ordering::AcqRel) {
            return;
        }
        for shard in &self.shards {
            let Some(mapping) = &shard.mapping else { continue };
            // The kernel may lack the memory for it, or the mapping is a VMM's.
            if mapping.revoke().is_ok() {
                let _ = shard.descriptor.wake(shard.addresses());
            }
        }
    }
}
