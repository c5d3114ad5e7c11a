//! What an engine is made of, how it behaves, and how it ends.

pub(super) use super::free_frames::FreeFrames;
use super::ports::{
    Clock, FaultQueue, InstallError, LocalCache, PageInstaller, PageSource, SourceError,
    SystemClock,
};
use crate::addr::FrameIndex;
use crate::alloc::Reservation;
use crate::prefetch::{LocalityOrder, PrefetchPolicy};
use crate::service::Panicked;
use crate::setters::setters;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// What an engine works with.
#[non_exhaustive]
pub struct EngineParts {
    /// The parent, arranged for policies.
    pub locality: Arc<LocalityOrder>,
    /// Decides what the clone gets before it asks.
    pub policy: Box<dyn PrefetchPolicy>,
    /// Where pages come from.
    pub source: Arc<dyn PageSource>,
    /// How they enter the clone.
    pub installer: Arc<dyn PageInstaller>,
    /// Who waits for them; `None` when the embedder calls [`Engine::fault`](super::Engine::fault)
    /// itself.
    pub queue: Option<Arc<dyn FaultQueue>>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// The clone's share of its host's memory; `None` takes what it takes.
    pub reservation: Option<Reservation>,
    /// What is here already and need not be fetched; `None` for nothing.
    pub local_cache: Option<Arc<dyn LocalCache>>,
}

impl EngineParts {
    /// Parts without a queue, a reservation and a local cache, on the system's clock.
    #[must_use]
    pub fn new(
        locality: Arc<LocalityOrder>,
        policy: Box<dyn PrefetchPolicy>,
        source: Arc<dyn PageSource>,
        installer: Arc<dyn PageInstaller>,
    ) -> Self {
        Self {
            locality,
            policy,
            source,
            installer,
            queue: None,
            clock: Arc::new(SystemClock::new()),
            reservation: None,
            local_cache: None,
        }
    }
}

setters!(EngineParts {
    queue: Option<Arc<dyn FaultQueue>>,
    clock: Arc<dyn Clock>,
    reservation: Option<Reservation>,
    local_cache: Option<Arc<dyn LocalCache>>,
});

impl fmt::Debug for EngineParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineParts").field("policy", &self.policy.name()).finish_non_exhaustive()
    }
}

/// Whether a clone is filled when nothing better is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Background {
    /// Only what the policy asks for is fetched.
    #[default]
    Off,
    /// Filled, at most so many pages per second.
    Throttled {
        /// Pages per second; 0 fills nothing.
        pages_per_second: u32,
    },
    /// Filled as fast as pages come.
    Full,
}

/// How the policy learns whether prefetched frames were used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Feedback {
    /// It does not; prefetched pages go into the clone's memory at once.
    #[default]
    Off,
    /// Prefetched pages are kept near, and placed on the first touch: all is known, at the price of
    /// a short fault each.
    Staged,
    /// One in so many prefetched pages is kept near: an unbiased sample, at a fraction of the
    /// price.
    Sampled {
        /// One in so many; 0 is none.
        one_in: u32,
    },
}

/// How an engine behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Whether the clone is filled when nothing better is to be done.
    pub background: Background,
    /// Most pages that one fault makes the engine prefetch, and most that it fills with zeros.
    pub budget: usize,
    /// Most frames that are planned and not yet asked for; older plans give way to newer ones.
    pub queue: usize,
    /// How the policy learns what was used.
    pub feedback: Feedback,
    /// Most pages that are staged at a time; the oldest are dropped.
    pub staged: usize,
    /// Whether free frames are filled with zeros here, or fetched.
    pub free_frames: FreeFrames,
    /// How long a touched frame may take before the clone is stopped, and how long anything is
    /// tried again that its memory refuses for now.
    pub timeout: Duration,
    /// Frames that the clone's memory is filled by: 1, or those of the host's pages where it has
    /// larger ones (512 of 2 MiB), aligned by frame index; 0 is 1. A fault brings all of them,
    /// and a frame that the image lacks stops the clone when any of them is touched.
    pub granule: u32,
}

impl Default for EngineOptions {
    /// 256 pages per plan, 4096 planned, no feedback (4096 pages if it is turned on), no background
    /// filling, free frames fetched, 30 seconds of timeout, frames one by one.
    fn default() -> Self {
        Self {
            background: Background::Off,
            budget: 256,
            queue: 4096,
            feedback: Feedback::Off,
            staged: 4096,
            free_frames: FreeFrames::Fetch,
            timeout: Duration::from_secs(30),
            granule: 1,
        }
    }
}

setters!(EngineOptions {
    background: Background,
    budget: usize,
    queue: usize,
    feedback: Feedback,
    staged: usize,
    free_frames: FreeFrames,
    timeout: Duration,
    granule: u32,
});

/// Why a clone cannot go on. Every thread that waits for a page gets it, and every later fault.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Stopped {
    /// It was told to.
    #[error("the clone was stopped")]
    Cancelled,
    /// It has ended by itself while a page was placed.
    #[error("the clone has ended")]
    Ended,
    /// No more pages come.
    #[error("the clone has no source of pages any more: {0}")]
    Source(Arc<SourceError>),
    /// A page cannot enter its memory.
    #[error("the clone's memory cannot be filled: {0}")]
    Memory(Arc<InstallError>),
    /// It touched a frame that the snapshot image does not hold.
    #[error("the clone touched frame {frame}, which the snapshot image does not hold")]
    Unavailable {
        /// The frame.
        frame: FrameIndex,
    },
    /// A frame that is none of the guest's was touched or given back.
    #[error("frame {frame} is none of the clone's {frames} frames")]
    NoSuchFrame {
        /// The frame.
        frame: FrameIndex,
        /// Number of frames.
        frames: u32,
    },
    /// A page took too long.
    #[error("frame {frame} did not come within {} ms", timeout.as_millis())]
    Timeout {
        /// The frame.
        frame: FrameIndex,
        /// How long the engine waited.
        timeout: Duration,
    },
    /// Code that it calls, or that calls it, panicked: what it was about is half done.
    #[error("the clone cannot go on: {0}")]
    Panicked(Panicked),
}

impl From<Panicked> for Stopped {
    fn from(error: Panicked) -> Self {
        Self::Panicked(error)
    }
}

impl From<SourceError> for Stopped {
    fn from(error: SourceError) -> Self {
        Self::Source(Arc::new(error))
    }
}

impl From<InstallError> for Stopped {
    fn from(error: InstallError) -> Self {
        if error.is_end() { Self::Ended } else { Self::Memory(Arc::new(error)) }
    }
}
