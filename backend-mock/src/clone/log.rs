//! Who called what with which frames, in which order.

use super::script::Failure;
use kaleidoscope_core::addr::FrameIndex;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;

/// What passes through a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Call {
    /// `PageSource::request`.
    Request,
    /// `PageSource::receive`.
    Receive,
    /// One delivery out of `PageSource::receive`.
    Deliver,
    /// `PageInstaller::place`.
    Install,
    /// `PageInstaller::zero`.
    Zero,
    /// `PageInstaller::zero_run`.
    ZeroRun,
    /// `PageInstaller::wake`.
    Wake,
    /// `PageInstaller::evict`.
    Evict,
    /// `FaultQueue::wait`.
    Wait,
    /// `FaultQueue::read`.
    Read,
    /// One event out of `FaultQueue::read`.
    Event,
}

/// One line of a [`Log`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What was called.
    pub call: Call,
    /// With which frames; an event's, a delivery's.
    pub frames: Vec<FrameIndex>,
    /// More about it: the priority, the kind of delivery, the event.
    pub detail: &'static str,
    /// What the script did to it.
    pub failures: Vec<Failure>,
    /// What came of it; empty while it lasts.
    pub outcome: String,
}

/// An ordered record of what passed through the ports. Copies are the same log.
///
/// A call is recorded when it begins, and gets its outcome when it ends. Calls beyond the log's
/// room are counted, not kept.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Mutex<Entries>>,
    room: usize,
}

#[derive(Default)]
struct Entries {
    kept: Vec<Entry>,
    dropped: u64,
}

/// An entry that has no outcome yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun(Option<usize>);

impl Default for Log {
    /// Room for a million calls.
    fn default() -> Self {
        Self::with_room(1_000_000)
    }
}

impl Log {
    /// An empty log with room for so many calls; 0 to count only.
    #[must_use]
    pub fn with_room(room: usize) -> Self {
        Self { shared: Arc::default(), room }
    }

    pub(super) fn begin(
        &self,
        call: Call,
        frames: Vec<FrameIndex>,
        detail: &'static str,
        failures: &[Failure],
    ) -> Begun {
        let mut entries = self.shared.lock();
        if entries.kept.len() >= self.room {
            entries.dropped += 1;
            return Begun(None);
        }
        let failures = failures.to_vec();
        entries.kept.push(Entry { call, frames, detail, failures, outcome: String::new() });
        Begun(Some(entries.kept.len() - 1))
    }

    pub(super) fn end(&self, begun: Begun, outcome: impl fmt::Display) {
        if let Begun(Some(at)) = begun
            && let Some(entry) = self.shared.lock().kept.get_mut(at)
        {
            entry.outcome = outcome.to_string();
        }
    }

    /// Everything recorded so far, in order.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.shared.lock().kept.clone()
    }

    /// What was recorded of one call, in order.
    #[must_use]
    pub fn of(&self, call: Call) -> Vec<Entry> {
        self.shared.lock().kept.iter().filter(|entry| entry.call == call).cloned().collect()
    }

    /// How many calls are recorded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.lock().kept.len()
    }

    /// Whether nothing was called yet, or there is no room.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every call for a frame, in order.
    #[must_use]
    pub fn about(&self, frame: FrameIndex) -> Vec<Entry> {
        self.shared.lock().kept.iter().filter(|e| e.frames.contains(&frame)).cloned().collect()
    }
}

impl Call {
    /// Its name in the ports' traits.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Receive => "receive",
            Self::Deliver => "deliver",
            Self::Install => "install",
            Self::Zero => "zero",
            Self::ZeroRun => "zero_run",
            Self::Wake => "wake",
            Self::Evict => "evict",
            Self::Wait => "wait",
            Self::Read => "read",
            Self::Event => "event",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call)?;
        if !self.detail.is_empty() {
            write!(f, " {}", self.detail)?;
        }
        for frame in self.frames.iter().take(16) {
            write!(f, " {frame}")?;
        }
        if self.frames.len() > 16 {
            write!(f, " and {} more", self.frames.len() - 16)?;
        }
        for failure in &self.failures {
            write!(f, " !{failure}")?;
        }
        if !self.outcome.is_empty() {
            write!(f, " -> {}", self.outcome)?;
        }
        Ok(())
    }
}

impl fmt::Display for Log {
    /// One line per call.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.shared.lock();
        for (number, entry) in entries.kept.iter().enumerate() {
            writeln!(f, "{number:6} {entry}")?;
        }
        if entries.dropped > 0 {
            writeln!(f, "and {} more calls", entries.dropped)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("calls", &self.len()).finish_non_exhaustive()
    }
}
