//! The events of a mock memory.

use kaleidoscope_core::clone::ports::{Event, FaultQueue, PlaceError};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// From when on frames that were given back are empty, and others can be placed again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Removal {
    /// As soon as somebody has read the event, as with userfaultfd: other threads may place and fault before the reader has done
    /// anything about it.
    #[default]
    WhenRead,
    /// When the thread that read the event comes back for the next one.
    WhenHandled,
}

/// The events of a [`MockMemory`](super::MockMemory). Copies are the same queue.
#[derive(Clone)]
pub struct MockQueue {
    shared: Arc<Shared>,
}

struct Shared {
    events: Mutex<Events>,
    /// An event came, or the queue was closed.
    arrived: Condvar,
    /// A removal is done.
    settled: Condvar,
    removal: Removal,
}

#[derive(Default)]
struct Events {
    waiting: VecDeque<Event>,
    /// Removals that nobody has read yet, or that are being handled.
    pending: Vec<Pending>,
    next_ticket: u64,
    is_closed: bool,
    read: u64,
}

struct Pending {
    ticket: u64,
    frames: Range<u32>,
    reader: Option<ThreadId>,
}

impl MockQueue {
    pub(super) fn new(removal: Removal) -> Self {
        let events = Mutex::new(Events::default());
        let (arrived, settled) = (Condvar::new(), Condvar::new());
        Self { shared: Arc::new(Shared { events, arrived, settled, removal }) }
    }

    /// Puts an event into the queue as if the memory had reported it: a fault that nobody waits on, for example.
    pub fn inject(&self, event: Event) {
        self.shared.events.lock().waiting.push_back(event);
        self.shared.arrived.notify_one();
    }

    /// Events that nobody has read yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.events.lock().waiting.len()
    }

    /// Whether every event has been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many events were read.
    #[must_use]
    pub fn events_read(&self) -> u64 {
        self.shared.events.lock().read
    }

    /// Whether frames are being given back, so that nothing can be placed.
    pub(super) fn is_changing(&self) -> bool {
        !self.shared.events.lock().pending.is_empty()
    }

    /// Reports that frames are given back.
    pub(super) fn push_removed(&self, frames: Range<u32>) -> u64 {
        let mut events = self.shared.events.lock();
        let ticket = events.next_ticket;
        events.next_ticket += 1;
        events.pending.push(Pending { ticket, frames: frames.clone(), reader: None });
        events.waiting.push_back(Event::Removed(frames));
        self.shared.arrived.notify_one();
        ticket
    }

    /// Waits until a removal has been read (and handled, if so asked); `false` when it was not in time, or the queue is closed.
    pub(super) fn wait_removed(&self, ticket: u64, deadline: Instant) -> bool {
        let mut events = self.shared.events.lock();
        loop {
            if events.pending.iter().all(|p| p.ticket != ticket) {
                return true;
            }
            if events.is_closed || Instant::now() >= deadline {
                events.pending.retain(|p| p.ticket != ticket);
                return false;
            }
            self.shared.settled.wait_until(&mut events, deadline);
        }
    }

    /// Every reader gets [`Event::Closed`] from now on.
    pub(super) fn close(&self) {
        self.shared.events.lock().is_closed = true;
        self.shared.arrived.notify_all();
        self.shared.settled.notify_all();
    }
}

impl FaultQueue for MockQueue {
    fn next(&self, wait: Duration) -> Result<Option<Event>, PlaceError> {
        let deadline = Instant::now().checked_add(wait);
        let me = thread::current().id();
        let mut events = self.shared.events.lock();
        let before = events.pending.len();
        events.pending.retain(|p| p.reader != Some(me));
        if events.pending.len() < before {
            self.shared.settled.notify_all();
        }
        loop {
            if events.is_closed {
                return Ok(Some(Event::Closed));
            }
            if let Some(event) = events.waiting.pop_front() {
                events.read += 1;
                if let Event::Removed(frames) = &event {
                    let read = |p: &&mut Pending| p.reader.is_none() && p.frames == *frames;
                    if let Some(pending) = events.pending.iter_mut().find(read) {
                        pending.reader = Some(me);
                    }
                    if self.shared.removal == Removal::WhenRead {
                        events.pending.retain(|p| p.reader.is_none());
                        self.shared.settled.notify_all();
                    }
                }
                return Ok(Some(event));
            }
            match deadline {
                None => self.shared.arrived.wait(&mut events),
                Some(deadline) => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                    self.shared.arrived.wait_until(&mut events, deadline);
                }
            }
        }
    }
}
