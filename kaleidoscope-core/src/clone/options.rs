//! The engine's parts and options, and the reasons for which a clone stops.

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

/// The parts of an engine.
#[non_exhaustive]
pub struct EngineParts {
    /// The parent's frames in the order in which policies see them.
    pub locality: Arc<LocalityOrder>,
    /// Decides which frames are prefetched.
    pub policy: Box<dyn PrefetchPolicy>,
    /// Delivers the snapshot's pages.
    pub source: Arc<dyn PageSource>,
    /// Installs pages in the clone's memory.
    pub installer: Arc<dyn PageInstaller>,
    /// Events of the clone's memory; `None` when the embedder calls
    /// [`Engine::fault`](super::Engine::fault) itself.
    pub queue: Option<Arc<dyn FaultQueue>>,
    /// Measures timeouts, stalls and fill rates.
    pub clock: Arc<dyn Clock>,
    /// The clone's share of its host's memory; `None` for no limit.
    pub reservation: Option<Reservation>,
    /// Pages that are already on this host; `None` for none.
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

/// Whether the streaming thread fills the clone when no prefetch is planned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Background {
    /// Only touched frames and those that the policy plans are fetched.
    #[default]
    Off,
    /// Filled at a limited rate.
    Throttled {
        /// Maximum pages per second; 0 fills nothing.
        pages_per_second: u32,
    },
    /// Filled as fast as the source delivers.
    Full,
}

/// How the policy learns whether prefetched frames were used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Feedback {
    /// It does not learn. Prefetched pages are installed at once.
    #[default]
    Off,
    /// Prefetched pages are staged, and installed on the first touch. The use of every page is
    /// known, at the cost of a short fault for each used page.
    Staged,
    /// A sample of the prefetched pages is staged: an unbiased estimate at a fraction of the
    /// cost.
    Sampled {
        /// One in so many prefetched pages is staged; 0 for none.
        one_in: u32,
    },
}

/// Options of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Whether the streaming thread fills the clone when no prefetch is planned.
    pub background: Background,
    /// Maximum frames that one fault's plan prefetches, and maximum that it fills with zeros.
    pub budget: usize,
    /// Maximum frames that are planned and not yet requested. The oldest plans are dropped first.
    pub queue: usize,
    /// How the policy learns which prefetched frames were used.
    pub feedback: Feedback,
    /// Maximum staged pages. The oldest are dropped first.
    pub staged: usize,
    /// Whether free frames are filled with zeros on this host, or fetched. Decided when the engine
    /// starts.
    pub free_frames: FreeFrames,
    /// How long a touched frame may take to become resident, and how long an installation that
    /// returns [`Installed::TryAgain`](super::ports::Installed::TryAgain) is retried, before the
    /// clone is stopped.
    pub timeout: Duration,
    /// Number of 4 KiB frames that the clone's memory makes resident together: 1, or the frames of
    /// a larger host page (512 for 2 MiB), aligned by frame index. 0 means 1. A fault installs the
    /// whole granule; a touch of any of its frames stops the clone if the snapshot image lacks one
    /// of them.
    pub granule: u32,
}

impl Default for EngineOptions {
    /// 256 frames per plan, 4096 planned frames, no feedback (4096 staged pages if it is turned
    /// on), no background fill, free frames zeroed where that is known to be safe, a timeout of 30
    /// seconds, granules of one frame.
    fn default() -> Self {
        Self {
            background: Background::Off,
            budget: 256,
            queue: 4096,
            feedback: Feedback::Off,
            staged: 4096,
            free_frames: FreeFrames::Auto,
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

/// Why a clone stopped. Every thread that waits for a page gets this error, and so does every later
/// fault.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Stopped {
    /// The embedder stopped the engine or dropped it.
    #[error("the clone was stopped")]
    Cancelled,
    /// The VM ended while a page was being installed.
    #[error("the clone has ended")]
    Ended,
    /// The source delivers no more pages.
    #[error("the clone has no source of pages any more: {0}")]
    Source(Arc<SourceError>),
    /// The clone's memory cannot be read, filled or emptied.
    #[error("the clone's memory cannot be filled: {0}")]
    Memory(Arc<InstallError>),
    /// The clone touched a frame that the snapshot image does not hold.
    #[error("the clone touched frame {frame}, which the snapshot image does not hold")]
    Unavailable {
        /// The frame.
        frame: FrameIndex,
    },
    /// A frame past the end of the guest was touched or given back.
    #[error("frame {frame} is past the end of the clone's {frames} frames")]
    NoSuchFrame {
        /// The frame.
        frame: FrameIndex,
        /// Number of the guest's frames.
        frames: u32,
    },
    /// A touched frame did not become resident in time.
    #[error("frame {frame} did not come within {} ms", timeout.as_millis())]
    Timeout {
        /// The frame.
        frame: FrameIndex,
        /// [`EngineOptions::timeout`].
        timeout: Duration,
    },
    /// A port, a policy or the engine panicked, which may have left an operation half done.
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
