//! A clone's memory as the engine's ports see it, wherever it is mapped.

use super::SharedPageCache;
use super::blocks::Blocks;
use super::journal::Journal;
use super::session::Orphan;
use super::shard::Shard;
use crate::memory::PageSize;
use crate::sys::Descriptor;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, InstallError, Installed};
use linux_raw_sys::general::UFFD_FEATURE_EVENT_REMOVE;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Memory that is filled through userfaultfds as it is touched.
#[derive(Debug)]
pub(crate) struct UserfaultMemory {
    /// By frame.
    pub(super) shards: Vec<Shard>,
    pub(super) watched: Vec<Watched>,
    /// Frames that clones on this host share, in memory that each of them maps.
    pub(super) cache: Option<Arc<SharedPageCache>>,
    /// Huge pages that are being collected, where the memory consists of those.
    pub(super) blocks: Option<Blocks>,
    /// The descriptor that is read first.
    pub(super) turn: AtomicUsize,
    /// What another process needs to go on if this one dies.
    pub(super) journal: Option<Journal>,
    /// Events that one message of the kernel stands for, beside the first.
    pub(super) pending: Mutex<VecDeque<Event>>,
    /// The VM has ended when one of these has come.
    pub(super) ends: Arc<Vec<End>>,
    /// Userfaultfds of processes that the VM's process forked, which nothing serves.
    pub(super) forked: Mutex<Vec<OwnedFd>>,
    /// The memory is no longer the guest's.
    pub(super) revoked: AtomicBool,
    /// The memory is no longer watched: every frame is resident, or is zeros.
    pub(super) released: AtomicBool,
}

/// A descriptor, and the shards whose faults it reports.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) descriptor: Arc<Descriptor>,
    /// Positions among the memory's shards.
    pub(super) shards: Vec<usize>,
    /// Whether the kernel reports what the guest gives back.
    pub(super) reports_removal: bool,
}

/// What tells that a VM has ended.
#[derive(Debug)]
pub(super) enum End {
    /// The other end of a connection was closed.
    Closed(OwnedFd),
    /// A process exited (pidfd).
    Exited(OwnedFd),
}

impl UserfaultMemory {
    /// Memory of another process, or of this one, whose owner opened the descriptors and registered
    /// the shards. They are all of the guest's frames, each once.
    pub(super) fn foreign(mut shards: Vec<Shard>, pages: PageSize, ends: Arc<Vec<End>>) -> Self {
        shards.sort_unstable_by_key(|shard| shard.frames.start);
        let mut watched: Vec<Watched> = Vec::new();
        for (at, shard) in shards.iter().enumerate() {
            let same = |known: &&mut Watched| Arc::ptr_eq(&known.descriptor, &shard.descriptor);
            if let Some(known) = watched.iter_mut().find(same) {
                known.shards.push(at);
                continue;
            }
            // Where the kernel does not tell, the memory is treated as if removals were not
            // reported, which is right in both cases.
            let features = shard.descriptor.features().unwrap_or(0);
            watched.push(Watched {
                descriptor: Arc::clone(&shard.descriptor),
                shards: vec![at],
                reports_removal: features & u64::from(UFFD_FEATURE_EVENT_REMOVE) != 0,
            });
        }
        Self::with(shards, watched, None, pages, ends)
    }

    pub(super) fn with(
        shards: Vec<Shard>,
        watched: Vec<Watched>,
        cache: Option<Arc<SharedPageCache>>,
        pages: PageSize,
        ends: Arc<Vec<End>>,
    ) -> Self {
        let frames = shards.last().map_or(0, |shard| shard.frames.end);
        Self {
            shards,
            watched,
            cache,
            blocks: (pages == PageSize::Huge).then(|| Blocks::new(frames)),
            turn: AtomicUsize::new(0),
            journal: None,
            pending: Mutex::default(),
            ends,
            forked: Mutex::default(),
            revoked: AtomicBool::new(false),
            released: AtomicBool::new(false),
        }
    }

    /// The shard of a frame, and the frame's addresses.
    pub(super) fn shard(&self, frame: FrameIndex) -> Result<(&Shard, Range<u64>), InstallError> {
        let at = self.shards.partition_point(|shard| shard.frames.end <= frame.0);
        let shard = self.shards.get(at).filter(|shard| shard.frames.contains(&frame.0));
        shard
            .map(|shard| (shard, shard.addresses_of(frame.0..frame.0 + 1)))
            .ok_or_else(|| InstallError::new(format!("the clone has no frame {frame}")))
    }

    /// Whether a frame's page is in the shared cache: zeros over it would hide it from this clone.
    pub(super) fn is_cached(&self, frame: FrameIndex) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.has(frame))
    }

    /// Whether a frame that was given back is reported as such.
    pub(super) fn reports_removal(&self, shard: &Shard) -> bool {
        let watched = self.watched.iter();
        let mut of_shard = watched.filter(|w| Arc::ptr_eq(&w.descriptor, &shard.descriptor));
        of_shard.next().is_none_or(|watched| watched.reports_removal)
    }

    /// The meaning of the kernel's answer to filling a frame.
    pub(super) fn installed(
        &self,
        frame: FrameIndex,
        result: Result<(), (usize, Errno)>,
    ) -> Result<Installed, InstallError> {
        match result {
            Ok(()) => Ok(Installed::Installed),
            Err((_, Errno::EXIST)) => Ok(Installed::AlreadyPresent),
            // Memory is being given back, and the event that says so was not read yet.
            Err((_, Errno::AGAIN)) => Ok(Installed::TryAgain),
            // A fault on zeros was resolved by the kernel.
            Err((_, Errno::NOENT)) if self.released.load(Ordering::Acquire) => {
                Ok(Installed::AlreadyPresent)
            }
            // The process that owns the memory has exited.
            Err((_, Errno::SRCH)) => Err(InstallError::ended()),
            Err((_, error)) => {
                Err(InstallError::caused_by(format!("frame {frame} cannot be filled"), error))
            }
        }
    }

    /// What has to stay open while the VM may run and nothing serves it.
    pub(super) fn orphan(&self) -> Orphan {
        Orphan {
            descriptors: self.watched.iter().map(|w| Arc::clone(&w.descriptor)).collect(),
            forked: std::mem::take(&mut *self.forked.lock()),
            ends: Arc::clone(&self.ends),
        }
    }
}
