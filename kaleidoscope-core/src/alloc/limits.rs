//! How much memory a host and a clone may use.

use super::pressure::Marks;

/// What a host has for its clones. All amounts are in frames.
///
/// Pressure is measured by what is granted, whole chunks of [`CHUNK_FRAMES`](super::CHUNK_FRAMES).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostLimits {
    /// Most frames for all clones together. Only faults go beyond.
    pub frames: u64,
    /// How many of them prefetch leaves to faults.
    pub reserve: u64,
    /// From this many granted frames on, clones prefetch less.
    pub shrink_prefetch_at: u64,
    /// From this many on, clones prefetch nothing and take back what was prefetched and not
    /// touched.
    pub reclaim_at: u64,
    /// From this many on, new clones are refused.
    pub refuse_clones_at: u64,
}

impl HostLimits {
    /// Limits for this many frames: a 16th kept for faults; prefetch shrinks at three quarters,
    /// clones reclaim at seven eighths and are refused at fifteen sixteenths.
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

    /// No limits: only counting.
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

/// What one clone may have. All amounts are in frames, of those that it uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CloneLimits {
    /// Most frames. Only faults go beyond.
    pub frames: u64,
    /// From this many frames in use on, the clone prefetches less.
    pub shrink_prefetch_at: u64,
    /// From this many on, it prefetches nothing and takes back what was prefetched and not
    /// touched.
    pub reclaim_at: u64,
}

impl CloneLimits {
    /// Limits for a clone with this many frames: prefetch shrinks at three quarters, and it
    /// reclaims at fifteen sixteenths.
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
        // A clone has no clones to refuse.
        Marks::new(self.shrink_prefetch_at, self.reclaim_at, u64::MAX)
    }
}
