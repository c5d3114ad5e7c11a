//! The fault queue of a mock memory.

use kaleidoscope_core::clone::ports::{Event, FaultQueue, InstallError};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The fault queue of a [`MockMemory`](super::MockMemory). Clones of it are handles to the same
/// queue.
#[derive(Clone, Default)]
pub struct MockQueue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    events: Mutex<Events>,
    /// An event was queued, or the queue was closed.
    arrived: Condvar,
    /// A removal event was read.
    read: Condvar,
}

#[derive(Default)]
struct Events {
    unread: VecDeque<(u64, Event)>,
    next_ticket: u64,
    /// Removal events that were not read yet.
    removals: Vec<u64>,
    is_closed: bool,
    read: u64,
}

impl MockQueue {
    /// Queues an event as if the memory had reported it, for example a fault without a waiter.
    pub fn inject(&self, event: Event) {
        self.push(event);
    }

    fn push(&self, event: Event) -> u64 {
        let mut events = self.shared.events.lock();
        let ticket = events.next_ticket;
        events.next_ticket += 1;
        if matches!(event, Event::Removed(_)) {
            events.removals.push(ticket);
        }
        events.unread.push_back((ticket, event));
        drop(events);
        self.shared.arrived.notify_all();
        ticket
    }

    /// Number of queued events.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.events.lock().unread.len()
    }

    /// Whether every event has been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of events read so far.
    #[must_use]
    pub fn events_read(&self) -> u64 {
        self.shared.events.lock().read
    }

    /// Whether a removal event is unread, so that no frame can be filled (EAGAIN of userfaultfd).
    pub(super) fn is_changing(&self) -> bool {
        !self.shared.events.lock().removals.is_empty()
    }

    /// Queues a removal event.
    pub(super) fn push_removed(&self, frames: Range<u32>) -> u64 {
        self.push(Event::Removed(frames))
    }

    /// Waits until a removal event was read; `false` at the deadline, or when the queue is closed.
    pub(super) fn wait_removed(&self, ticket: u64, deadline: Instant) -> bool {
        let mut events = self.shared.events.lock();
        loop {
            if !events.removals.contains(&ticket) {
                return true;
            }
            if events.is_closed || Instant::now() >= deadline {
                events.removals.retain(|t| *t != ticket);
                return false;
            }
            self.shared.read.wait_until(&mut events, deadline);
        }
    }

    /// Makes every read return [`Event::Closed`] from now on.
    pub(super) fn close(&self) {
        self.shared.events.lock().is_closed = true;
        self.shared.arrived.notify_all();
        self.shared.read.notify_all();
    }
}

impl FaultQueue for MockQueue {
    fn wait(&self, wait: Duration) -> Result<(), InstallError> {
        let mut events = self.shared.events.lock();
        if events.unread.is_empty() && !events.is_closed {
            self.shared.arrived.wait_for(&mut events, wait);
        }
        Ok(())
    }

    fn read(&self) -> Result<Option<Event>, InstallError> {
        let mut events = self.shared.events.lock();
        if events.is_closed {
            return Ok(Some(Event::Closed));
        }
        let Some((ticket, event)) = events.unread.pop_front() else { return Ok(None) };
        events.read += 1;
        if matches!(event, Event::Removed(_)) {
            events.removals.retain(|t| *t != ticket);
            self.shared.read.notify_all();
        }
        Ok(Some(event))
    }
}

impl std::fmt::Debug for MockQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MockQueue").field("unread", &self.len()).finish_non_exhaustive()
    }
}
