//! The end of watching: memory that is complete, or that is taken from its guest.

use super::memory::UserfaultMemory;
use crate::error::{Asked, Error};
use kaleidoscope_core::addr::FrameIndex;
use rustix::io::Errno;
use std::sync::atomic::Ordering;

impl UserfaultMemory {
    /// Stops watching the memory. Every frame is resident or reads as zeros.
    pub(super) fn unwatch(&self) -> Result<(), Error> {
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
    /// owner cannot be taken: its vCPUs go on waiting. Memory of another process is not touched,
    /// and its queue does not report an end: the VM may run on.
    pub(crate) fn revoke(&self) {
        let is_own = self.shards.iter().any(|shard| shard.mapping.is_some());
        if !is_own || self.revoked.swap(true, Ordering::AcqRel) {
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
