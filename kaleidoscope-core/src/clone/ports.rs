//! The engine's ports: where pages come from, how they enter the clone, who waits for them, what
//! time it is.
//!
//! Each is a small object-safe trait. A backend implements [`PageInstaller`] and [`FaultQueue`] on
//! a hypervisor's memory, the page server's client implements [`PageSource`]; tests wrap any of
//! them to delay, lose, repeat or damage what passes.

use crate::addr::FrameIndex;
use crate::memory::Page;
use crate::prefetch::Access;
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How urgently a frame is wanted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Priority {
    /// Nobody waits for it yet.
    Prefetch,
    /// A vCPU stands still until it comes.
    Urgent,
}

/// What a source says of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery<'a> {
    /// The frame's bytes at the instant of the freeze.
    Page(FrameIndex, &'a Page),
    /// The frame's bytes at the instant of the freeze are all zeros.
    Zero(FrameIndex),
    /// The snapshot image does not hold the frame. A clone that touches it is stopped.
    Unavailable(FrameIndex),
}

impl Delivery<'_> {
    /// The frame that it is about.
    #[must_use]
    pub fn frame(&self) -> FrameIndex {
        match self {
            Self::Page(frame, _) | Self::Zero(frame) | Self::Unavailable(frame) => *frame,
        }
    }
}

/// Why no more pages come: whatever could be tried again was.
#[derive(Debug)]
pub struct SourceError(Failure);

/// Why a page cannot enter the clone's memory.
#[derive(Debug)]
pub struct InstallError {
    failure: Failure,
    is_end: bool,
}

/// A message for people, and the error that led to it.
#[derive(Debug)]
struct Failure {
    message: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), cause: None }
    }

    fn caused_by(
        message: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { message: message.into(), cause: Some(cause.into()) }
    }

    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| cause.as_ref() as &(dyn Error + 'static))
    }
}

impl fmt::Display for Failure {
    /// The message and the chain of causes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl SourceError {
    /// An error with a message for people: what failed, where.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(Failure::new(message))
    }

    /// An error with the one that led to it.
    #[must_use]
    pub fn caused_by(
        message: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self(Failure::caused_by(message, cause))
    }
}

impl InstallError {
    /// An error with a message for people: what failed, where.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { failure: Failure::new(message), is_end: false }
    }

    /// An error with the one that led to it.
    #[must_use]
    pub fn caused_by(
        message: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { failure: Failure::caused_by(message, cause), is_end: false }
    }

    /// The memory is gone because the VM has ended (ESRCH from an ioctl, say). The engine then
    /// stops with [`Stopped::Ended`](super::Stopped::Ended), which is no failure.
    #[must_use]
    pub fn ended() -> Self {
        Self { failure: Failure::new("the VM has ended"), is_end: true }
    }

    /// Whether the VM has ended.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.is_end
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl Error for SourceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl Error for InstallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.failure.source()
    }
}

/// Where pages come from: a page server, a file, another host's memory.
///
/// Asking and receiving are apart, so that many frames can be on their way at once. Every frame
/// that was asked for is delivered at least once, in any order, or an error ends them all;
/// connections that break are the source's own affair as long as another way can be found.
pub trait PageSource: Send + Sync {
    /// Asks for frames and returns without waiting for them. Called by many threads at once, also
    /// while another one receives. A frame that is on its way may be asked for again, as
    /// urgent: it then comes sooner, and possibly twice.
    ///
    /// # Errors
    /// [`SourceError`] when no page will ever come any more.
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError>;

    /// Waits until something arrives, but no longer than `wait`, and hands over everything that has
    /// arrived. The engine has one thread in here at a time.
    ///
    /// # Errors
    /// [`SourceError`] when no page will ever come any more.
    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError>;

    /// How many prefetched frames to have on their way at most: enough to keep the way busy, few
    /// enough that an urgent one does not wait long.
    fn window(&self) -> usize {
        128
    }
}

impl<S: PageSource + ?Sized> PageSource for Arc<S> {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        (**self).request(frames, priority)
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        (**self).receive(wait, deliver)
    }

    fn window(&self) -> usize {
        (**self).window()
    }
}

/// What is known here of a frame's bytes at the instant of the freeze.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Lookup {
    /// They are these.
    Page,
    /// They are all zeros.
    Zero,
    /// Nothing: the source has to be asked.
    Miss,
}

/// Pages that are on this host already, whoever brought them: no source need be asked for them.
/// Called by many threads at once.
pub trait LocalCache: Send + Sync {
    /// Copies a frame's bytes, if they are here. Does not wait for anything slower than memory.
    fn take(&self, frame: FrameIndex, page: &mut Page) -> Lookup;

    /// Is offered a page that the source brought.
    fn keep(&self, frame: FrameIndex, page: &Page);
}

/// What became of a page that was to be placed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Installed {
    /// It is in the clone's memory.
    Installed,
    /// The frame had bytes already; they are untouched.
    AlreadyPresent,
    /// Not now: the memory is changing, and an event that nobody has read yet says how. Read it,
    /// then try again.
    TryAgain,
}

/// What became of a frame that was to be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Eviction {
    /// The frame is empty again; the next touch is a fault.
    Evicted,
    /// The clone has touched it.
    InUse,
    /// This memory cannot tell.
    Unsupported,
}

/// How pages enter the clone's memory. Called by many threads at once, never by two for the same
/// frame.
pub trait PageInstaller: Send + Sync {
    /// Fills a frame that is empty, and wakes the vCPUs that wait for it. A vCPU sees all of the
    /// page or none of it.
    ///
    /// # Errors
    /// [`InstallError`] when the frame cannot be filled; the clone is then stopped.
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError>;

    /// Fills a frame with zeros, as [`PageInstaller::install`] does with bytes.
    ///
    /// # Errors
    /// As for [`PageInstaller::install`].
    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError>;

    /// Fills empty frames with zeros ahead of any touch, at the least cost that the memory offers.
    ///
    /// Returns how many of them, from the first on, are filled (or had bytes already).
    ///
    /// # Errors
    /// As for [`PageInstaller::install`].
    fn zero_run(&self, frames: Range<u32>) -> Result<u32, InstallError> {
        let mut done = 0;
        for frame in frames {
            match self.zero(FrameIndex(frame))? {
                Installed::Installed | Installed::AlreadyPresent => done += 1,
                Installed::TryAgain => break,
            }
        }
        Ok(done)
    }

    /// Frames that have the bytes of the freeze before anything is placed, in memory that is not
    /// the clone's own until it writes there: pages of a store, mapped. They are never faults.
    /// Asked once, when the engine starts.
    fn shown(&self) -> Vec<Range<u32>> {
        Vec::new()
    }

    /// Wakes the vCPUs that wait for a frame that is there already.
    ///
    /// # Errors
    /// [`InstallError`] when they cannot be woken; the clone is then stopped.
    fn wake(&self, frame: FrameIndex) -> Result<(), InstallError>;

    /// Empties a frame again unless the clone has touched it since it was placed.
    ///
    /// # Errors
    /// [`InstallError`] when it is not known whether the frame is empty now; the clone is then
    /// stopped.
    fn evict(&self, frame: FrameIndex) -> Result<Eviction, InstallError> {
        let _ = frame;
        Ok(Eviction::Unsupported)
    }
}

/// What a clone's memory reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A vCPU touched an empty frame and waits.
    Fault {
        /// The frame.
        frame: FrameIndex,
        /// How it was touched.
        access: Access,
    },
    /// The guest gave frames back (a balloon): they read as zeros from now on.
    Removed(Range<u32>),
    /// The clone has ended.
    Closed,
}

/// Who waits: reports of a clone's memory. Several threads use it at once; each event goes to one
/// of them.
///
/// Waiting and reading are apart because the engine reads while it keeps all pages out of the
/// clone's memory: between the instant at which the guest gives a frame back and the instant at
/// which the engine knows, none may be placed there.
pub trait FaultQueue: Send + Sync {
    /// Waits until there is an event to read, but no longer than `wait`; may return early, and
    /// without one.
    ///
    /// # Errors
    /// [`InstallError`] when events can no longer be read; the clone is then stopped.
    fn wait(&self, wait: Duration) -> Result<(), InstallError>;

    /// Reads the next event, if there is one. Never waits.
    ///
    /// One giving back that the queue reports as several ranges comes as events one after another:
    /// the engine reads on, before any page is placed, until it gets another event or none.
    ///
    /// # Errors
    /// As for [`FaultQueue::wait`].
    fn read(&self) -> Result<Option<Event>, InstallError>;
}

/// What time it is.
pub trait Clock: Send + Sync {
    /// Time since some fixed instant; never goes back.
    fn now(&self) -> Duration;
}

/// The system's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}
