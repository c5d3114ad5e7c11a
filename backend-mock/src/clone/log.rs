//! Ordered log of the calls through the ports.

use super::script::Failure;
use kaleidoscope_core::addr::FrameIndex;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;

/// A kind of call through a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Call {
    /// `PageSource::request`.
    Request,
    /// `PageSource::receive`.
    Receive,
    /// One delivery out of `PageSource::receive`.
    Deliver,
    /// `PageInstaller::install`.
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

/// One entry of a [`Log`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The call.
    pub call: Call,
    /// The frames of the call, event or delivery.
    pub frames: Vec<FrameIndex>,
    /// Details: the priority, the kind of delivery, the event.
    pub detail: &'static str,
    /// Failures that the script injected.
    pub failures: Vec<Failure>,
    /// The result; empty until the call ends.
    pub outcome: String,
}

/// An ordered record of the calls through the ports. Clones of it are handles to the same log.
///
/// An entry is recorded when its call begins, and gets its outcome when the call ends. Calls beyond
/// the log's capacity are counted, not kept.
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

/// Identifies an entry whose outcome is still missing; `None` beyond the capacity.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryId(Option<usize>);

impl Default for Log {
    /// A capacity of a million calls.
    fn default() -> Self {
        Self::with_room(1_000_000)
    }
}

impl Log {
    /// An empty log that keeps at most `room` calls; 0 to count only.
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
    ) -> EntryId {
        let mut entries = self.shared.lock();
        if entries.kept.len() >= self.room {
            entries.dropped += 1;
            return EntryId(None);
        }
        let failures = failures.to_vec();
        entries.kept.push(Entry { call, frames, detail, failures, outcome: String::new() });
        EntryId(Some(entries.kept.len() - 1))
    }

    pub(super) fn end(&self, id: EntryId, outcome: impl fmt::Display) {
        if let EntryId(Some(at)) = id
            && let Some(entry) = self.shared.lock().kept.get_mut(at)
        {
            entry.outcome = outcome.to_string();
        }
    }

    /// All entries, in order.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.shared.lock().kept.clone()
    }

    /// All entries of one kind of call, in order.
    #[must_use]
    pub fn of(&self, call: Call) -> Vec<Entry> {
        self.shared.lock().kept.iter().filter(|entry| entry.call == call).cloned().collect()
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.lock().kept.len()
    }

    /// Whether the log has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries that concern a frame, in order.
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
