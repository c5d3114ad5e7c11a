//! Memory limits of hosts and clones.

use super::pressure::Marks;
use crate::setters::setters;

/// A host's limits for its clones. All amounts are in frames.
///
/// The marks are compared with the granted frames, in whole chunks of
/// [`CHUNK_FRAMES`](super::CHUNK_FRAMES).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct HostLimits {
    /// Maximum of all clones together. Only faults exceed it.
    pub frames: u64,
    /// How many of these frames are reserved for faults.
    pub reserve: u64,
    /// From this many granted frames, clones prefetch less.
    pub shrink_prefetch_at: u64,
    /// From this many, clones stop prefetching and reclaim prefetched pages that were not touched.
    pub reclaim_at: u64,
    /// From this many, new clones are refused.
    pub refuse_clones_at: u64,
}

setters!(HostLimits {
    frames: u64,
    reserve: u64,
    shrink_prefetch_at: u64,
    reclaim_at: u64,
    refuse_clones_at: u64,
});

impl HostLimits {
    /// Limits for this many frames: 1/16 is reserved for faults, prefetch shrinks at 3/4, clones
    /// reclaim at 7/8, and new clones are refused at 15/16.
    #[must_use]
    pub fn for_frames(frames: u64) -> Self {
        Self {
            frames,
            reserve: frames / 16,
            shrink_prefetch_at: frames - frames / 4,
            reclaim_at: frames - frames / 8,
            refuse_clones_at: frames - frames / 16,
        }
    }

    /// No limits; frames are only counted.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            frames: u64::MAX,
            reserve: 0,
            shrink_prefetch_at: u64::MAX,
            reclaim_at: u64::MAX,
            refuse_clones_at: u64::MAX,
        }
    }

    pub(super) fn marks(&self) -> Marks {
        Marks::new(self.shrink_prefetch_at, self.reclaim_at, self.refuse_clones_at)
    }
}

/// A clone's limits. All amounts are in frames in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CloneLimits {
    /// Maximum. Only faults exceed it.
    pub frames: u64,
    /// From this many frames, the clone prefetches less.
    pub shrink_prefetch_at: u64,
    /// From this many, the clone stops prefetching and reclaims prefetched pages that were not
    /// touched.
    pub reclaim_at: u64,
}

setters!(CloneLimits { frames: u64, shrink_prefetch_at: u64, reclaim_at: u64 });

impl CloneLimits {
    /// Limits for a clone with this many frames: prefetch shrinks at 3/4, and it reclaims at 15/16.
    #[must_use]
    pub fn for_frames(frames: u64) -> Self {
        Self { frames, shrink_prefetch_at: frames - frames / 4, reclaim_at: frames - frames / 16 }
    }

    /// No limits of its own.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { frames: u64::MAX, shrink_prefetch_at: u64::MAX, reclaim_at: u64::MAX }
    }

    pub(super) fn marks(&self) -> Marks {
        // A clone admits no clones.
        Marks::new(self.shrink_prefetch_at, self.reclaim_at, u64::MAX)
    }
}
