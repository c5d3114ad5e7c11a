//! The engine's ports: the source of pages, the clone's memory, its fault events, a local page
//! cache and a clock.
//!
//! Each port is a small object-safe trait. A backend implements [`PageInstaller`] and
//! [`FaultQueue`] on a hypervisor's memory. The page server's client implements [`PageSource`].
//! Tests wrap a port to delay, lose, repeat or damage what passes through it.

use crate::addr::FrameIndex;
use crate::memory::{Page, SnapshotId};
use crate::prefetch::Access;
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How urgently a frame is needed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Priority {
    /// No vCPU waits for the frame yet.
    Prefetch,
    /// A vCPU is blocked until the frame is resident.
    Urgent,
}

/// A source's answer for one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery<'a> {
    /// The frame's bytes in the snapshot.
    Page(FrameIndex, &'a Page),
    /// The frame is all zeros in the snapshot.
    Zero(FrameIndex),
    /// The snapshot image does not hold the frame. A clone that touches the frame is stopped.
    Unavailable(FrameIndex),
}

impl Delivery<'_> {
    /// The frame that the answer is about.
    #[must_use]
    pub fn frame(&self) -> FrameIndex {
        match self {
            Self::Page(frame, _) | Self::Zero(frame) | Self::Unavailable(frame) => *frame,
        }
    }
}

/// Why a source delivers no more pages. The source has already tried whatever can be retried.
#[derive(Debug)]
pub struct SourceError(Failure);

/// Why the clone's memory cannot be read, filled or emptied.
#[derive(Debug)]
pub struct InstallError {
    failure: Failure,
    is_end: bool,
}

/// A message for people, and its cause.
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
    /// An error with a message for people: what failed, and where.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(Failure::new(message))
    }

    /// An error with a message for people, and its cause.
    #[must_use]
    pub fn caused_by(
        message: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self(Failure::caused_by(message, cause))
    }
}

impl InstallError {
    /// An error with a message for people: what failed, and where.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { failure: Failure::new(message), is_end: false }
    }

    /// An error with a message for people, and its cause.
    #[must_use]
    pub fn caused_by(
        message: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { failure: Failure::caused_by(message, cause), is_end: false }
    }

    /// The memory is gone because the VM has ended, for example when an ioctl returns ESRCH. The
    /// engine then stops with [`Stopped::Ended`](super::Stopped::Ended), which is not a failure.
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

/// A source of pages: a page server, a file, or another host's memory.
///
/// Requesting and receiving are separate calls, so that many frames can be in flight at once.
/// Every requested frame is delivered at least once, in any order, unless the source fails. A
/// source hides broken connections as long as it can reach the pages in another way.
pub trait PageSource: Send + Sync {
    /// Requests frames and returns without waiting for them. Called by many threads at once, also
    /// while another thread receives. A frame in flight may be requested again with
    /// [`Priority::Urgent`]: it then arrives sooner, and possibly twice.
    ///
    /// # Errors
    /// [`SourceError`] when the source will deliver no more pages.
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError>;

    /// Waits for at most `wait` until an answer arrives, and passes every answer that has arrived
    /// to `deliver`. The engine calls it from one thread at a time.
    ///
    /// # Errors
    /// [`SourceError`] when the source will deliver no more pages.
    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError>;

    /// Maximum number of prefetched frames in flight: large enough to keep the connection busy,
    /// small enough that an urgent frame does not wait long.
    fn window(&self) -> usize {
        128
    }

    /// Identifies the snapshot whose pages it delivers; `None` if it is not known, which is the
    /// default. A source that wraps another one should forward this method. Without an id,
    /// [`FreeFrames::Auto`](super::FreeFrames::Auto) fetches free frames.
    fn snapshot_id(&self) -> Option<SnapshotId> {
        None
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

    fn snapshot_id(&self) -> Option<SnapshotId> {
        (**self).snapshot_id()
    }
}

/// Result of a lookup in a [`LocalCache`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Lookup {
    /// The frame's bytes in the snapshot were copied into the buffer.
    Page,
    /// The frame is all zeros in the snapshot. The buffer is unspecified.
    Zero,
    /// The cache does not have the frame: it must be requested from the source.
    Miss,
}

/// Pages that are already on this host, so that the source need not send them. Called by many
/// threads at once.
pub trait LocalCache: Send + Sync {
    /// Copies a frame into `page` if the cache has it. Waits for nothing slower than memory.
    fn take(&self, frame: FrameIndex, page: &mut Page) -> Lookup;

    /// Offers a page that the source delivered. The cache may ignore it.
    fn keep(&self, frame: FrameIndex, page: &Page);
}

/// Result of installing a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Installed {
    /// The page is in the clone's memory.
    Installed,
    /// The frame already had a page, which is unchanged.
    AlreadyPresent,
    /// The memory is changing, and an event that has not been read yet tells how. The engine reads
    /// the events, and then tries again.
    TryAgain,
}

/// Result of evicting a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Eviction {
    /// The frame is empty again: the next touch faults.
    Evicted,
    /// The clone has touched the frame, which stays resident.
    InUse,
    /// This memory cannot tell whether the clone touched the frame, which stays resident.
    Unsupported,
}

/// Installs pages in the clone's memory. Called by many threads at once, but never by two for the
/// same frame.
///
/// The answers of an installer on a userfaultfd, by what UFFDIO_COPY or UFFDIO_ZEROPAGE returns:
///
/// | the system | the installer | the engine |
/// |---|---|---|
/// | success | [`Installed::Installed`] | makes the frame present; the ioctl woke the vCPU |
/// | EEXIST: a page is there | [`Installed::AlreadyPresent`] | calls [`wake`](Self::wake) |
/// | EAGAIN: an event is unread | [`Installed::TryAgain`] | reads events, tries until the timeout |
/// | ESRCH: the process has exited | [`InstallError::ended`] | stops with [`Stopped::Ended`] |
/// | any other | [`InstallError::caused_by`] | stops with [`Stopped::Memory`] |
///
/// The timeout is [`EngineOptions::timeout`]. [`Stopped::Ended`] is no failure:
/// [`Engine::has_ended`] is true. A [`FaultQueue`] tells the same by [`Event::Closed`].
///
/// [`Engine::has_ended`]: super::Engine::has_ended
/// [`EngineOptions::timeout`]: super::EngineOptions::timeout
/// [`Stopped::Ended`]: super::Stopped::Ended
/// [`Stopped::Memory`]: super::Stopped::Memory
pub trait PageInstaller: Send + Sync {
    /// Fills an empty frame, and wakes the vCPUs that wait for it. A vCPU sees the whole page or
    /// none of it.
    ///
    /// # Errors
    /// [`InstallError`] when the frame cannot be filled; the clone is then stopped.
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError>;

    /// Fills consecutive empty frames, in the cheapest way that the memory offers. The vCPUs that
    /// wait for them need not be woken: the engine does so where it knows of any.
    ///
    /// Returns how many frames, counted from the first, now have a page.
    ///
    /// # Errors
    /// As for [`PageInstaller::install`].
    fn install_run(&self, first: FrameIndex, pages: &[Page]) -> Result<u32, InstallError> {
        let mut done = 0;
        for (frame, page) in (first.0..).zip(pages) {
            match self.install(FrameIndex(frame), page)? {
                Installed::Installed | Installed::AlreadyPresent => done += 1,
                Installed::TryAgain => break,
            }
        }
        Ok(done)
    }

    /// Fills an empty frame with zeros, and wakes the vCPUs that wait for it.
    ///
    /// # Errors
    /// As for [`PageInstaller::install`].
    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError>;

    /// Fills consecutive empty frames with zeros, in the cheapest way that the memory offers. As for
    /// [`install_run`](Self::install_run), the engine wakes the vCPUs that wait.
    ///
    /// Returns how many frames, counted from the first, now have a page.
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

    /// Ranges of frames that have their snapshot pages from the start, because pages of a store are
    /// mapped there copy-on-write. These frames never fault. Called once, when the engine starts.
    /// Ranges may overlap; frames past the end of the guest are ignored.
    fn shown(&self) -> Vec<Range<u32>> {
        Vec::new()
    }

    /// Wakes the vCPUs that wait for a frame that is already resident.
    ///
    /// # Errors
    /// [`InstallError`] when they cannot be woken; the clone is then stopped.
    fn wake(&self, frame: FrameIndex) -> Result<(), InstallError>;

    /// Empties a frame unless the clone has touched it since it was installed.
    ///
    /// # Errors
    /// [`InstallError`] when the frame may or may not be empty now; the clone is then stopped.
    fn evict(&self, frame: FrameIndex) -> Result<Eviction, InstallError> {
        let _ = frame;
        Ok(Eviction::Unsupported)
    }
}

/// An event of a clone's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A vCPU touched an empty frame, and is blocked.
    Fault {
        /// The frame.
        frame: FrameIndex,
        /// How the vCPU touched the frame.
        access: Access,
    },
    /// The guest gave these frames back, for example through a balloon. They read as zeros from
    /// now on.
    Removed(Range<u32>),
    /// The VM has ended.
    Closed,
}

/// The events of a clone's memory. Several threads use a queue at once; each event goes to one of
/// them.
///
/// Waiting and reading are separate calls, because the engine installs no page while it reads. Once
/// the guest has given a frame back, no page may be installed there until the engine has read the
/// event.
///
/// ```
/// use kaleidoscope_core::addr::FrameIndex;
/// use kaleidoscope_core::clone::ports::{Event, FaultQueue, InstallError};
/// use kaleidoscope_core::prefetch::Access;
/// use std::collections::VecDeque;
/// use std::sync::{Condvar, Mutex, PoisonError};
/// use std::time::Duration;
///
/// /// Events that the threads of a VMM report.
/// #[derive(Default)]
/// struct Reports(Mutex<VecDeque<Event>>, Condvar);
///
/// impl Reports {
///     fn report(&self, event: Event) {
///         self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
///         self.1.notify_one();
///     }
/// }
///
/// impl FaultQueue for Reports {
///     fn wait(&self, wait: Duration) -> Result<(), InstallError> {
///         let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
///         drop(self.1.wait_timeout_while(events, wait, |events| events.is_empty()));
///         Ok(())
///     }
///
///     fn read(&self) -> Result<Option<Event>, InstallError> {
///         Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front())
///     }
/// }
///
/// let reports = Reports::default();
/// let fault = Event::Fault { frame: FrameIndex(3), access: Access::Write };
/// reports.report(fault.clone());
/// reports.wait(Duration::from_secs(1))?;
/// assert_eq!(reports.read()?, Some(fault));
/// assert_eq!(reports.read()?, None);
/// # Ok::<(), InstallError>(())
/// ```
pub trait FaultQueue: Send + Sync {
    /// Waits for at most `wait` until there is an event to read. May return early without one.
    ///
    /// # Errors
    /// [`InstallError`] when events can no longer be read; the clone is then stopped.
    fn wait(&self, wait: Duration) -> Result<(), InstallError>;

    /// Reads the next event, if there is one. Never waits.
    ///
    /// A queue that reports one removal as several ranges must return them one after another: the
    /// engine reads on, before it installs any page, until it gets another event or none.
    ///
    /// # Errors
    /// As for [`FaultQueue::wait`].
    fn read(&self) -> Result<Option<Event>, InstallError>;
}

/// A monotonic clock.
pub trait Clock: Send + Sync {
    /// Time since some fixed instant. Never decreases.
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
