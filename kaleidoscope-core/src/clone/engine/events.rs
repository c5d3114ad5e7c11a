//! Events of the clone's memory, and the gate that prevents installation while they are read.

use super::super::options::Stopped;
use super::super::ports::{Event, FaultQueue};
use super::super::retry::Retry;
use super::frame_states::Phase;
use super::state::{CloneState, MAX_WAIT};
use crate::addr::FrameIndex;
use crate::prefetch::Access;
use crate::sync::{AtomicBool, Mutex, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Maximum events that are read in one go.
const EVENT_BATCH: usize = 256;

/// Reads events.
///
/// Once the guest has given a frame back, the snapshot's page must not be installed there, even
/// before the engine has read the event. So pages are installed with the gate shared, events are
/// read with the gate exclusive, and the memory refuses pages while an event is unread
/// ([`Installed::TryAgain`](super::super::ports::Installed::TryAgain)).
pub(super) struct Events {
    /// Boxed: it is large, and the parts above move what they own while they are made.
    pub(super) state: Box<CloneState>,
    queue: Option<Arc<dyn FaultQueue>>,
    gate: RwLock<()>,
    /// Faults that were read by threads that were installing a page, and so could not answer them.
    deferred: Mutex<VecDeque<(FrameIndex, Access)>>,
    /// The VM has ended.
    closed: AtomicBool,
}

impl Events {
    pub(super) fn new(state: Box<CloneState>, queue: Option<Arc<dyn FaultQueue>>) -> Self {
        Self {
            state,
            queue,
            gate: RwLock::new(()),
            deferred: Mutex::new(VecDeque::new()),
            closed: AtomicBool::new(false),
        }
    }

    /// Takes the gate shared: pages may be installed, and no event is read.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    /// Takes the gate exclusively: no page is installed.
    pub(super) fn close_gate(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write()
    }

    pub(super) fn has_queue(&self) -> bool {
        self.queue.is_some()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes a fault that was read and not answered.
    pub(super) fn next_deferred(&self) -> Option<(FrameIndex, Access)> {
        self.deferred.lock().pop_front()
    }

    /// Waits for an event and reads it. Returns `None` if there is none within [`MAX_WAIT`].
    pub(super) fn wait(&self, idle: &mut Retry) -> Result<Option<Event>, Stopped> {
        let Some(queue) = &self.queue else { return Ok(None) };
        let clock = &self.state.clock;
        let start = clock.now();
        queue.wait(MAX_WAIT)?;
        let event = self.read()?;
        let has_waited = event.is_some() || clock.now().saturating_sub(start) >= MAX_WAIT / 2;
        self.state.back_off(has_waited, idle);
        Ok(event)
    }

    /// Reads the next event. Records frames that were given back before any page is installed, and
    /// returns the last removal if no other event follows it.
    fn read(&self) -> Result<Option<Event>, Stopped> {
        let Some(queue) = &self.queue else { return Ok(None) };
        let gate = self.close_gate();
        let (mut event, mut removal) = (None, None);
        // One removal may arrive as several events, so the gate stays closed until another kind of
        // event arrives, or `EVENT_BATCH` events were read.
        for _ in 0..EVENT_BATCH {
            match queue.read()? {
                Some(Event::Removed(frames)) => {
                    self.remove(frames.clone())?;
                    removal = Some(Event::Removed(frames));
                }
                other => {
                    event = other;
                    break;
                }
            }
        }
        drop(gate);
        if removal.is_some() {
            self.state.waiters.wake();
        }
        if event == Some(Event::Closed) {
            self.closed.store(true, Ordering::Release);
        }
        Ok(event.or(removal))
    }

    /// Called when the memory is changing and cannot take a page: reads the events that tell how it
    /// changes, and pauses.
    ///
    /// # Errors
    /// [`Stopped::Timeout`] when the attempts took too long.
    pub(super) fn before_retry(&self, frame: FrameIndex, retry: &mut Retry) -> Result<(), Stopped> {
        self.read_all()?;
        self.state.pause(frame, retry)
    }

    /// Reads pending events, and defers the faults among them. Reads at most [`EVENT_BATCH`], so
    /// that a guest that makes events as fast as they are read does not keep the thread here past
    /// its deadline.
    pub(super) fn read_all(&self) -> Result<(), Stopped> {
        self.state.check()?;
        for _ in 0..EVENT_BATCH {
            let Some(event) = self.read()? else { break };
            match event {
                Event::Fault { frame, access } => {
                    self.deferred.lock().push_back((frame, access));
                    // This thread must install its page first; the streaming thread may be idle.
                    self.state.waiters.kick();
                }
                Event::Closed => return Err(Stopped::Ended),
                Event::Removed(_) => {}
            }
        }
        Ok(())
    }

    /// Records that the guest gave frames back. The caller holds the gate exclusively.
    pub(super) fn remove(&self, range: Range<u32>) -> Result<(), Stopped> {
        let state = &self.state;
        let frames = state.locality.frames();
        if range.start > range.end || range.end > frames {
            let frame = FrameIndex(range.end.saturating_sub(1).max(range.start));
            return Err(Stopped::NoSuchFrame { frame, frames });
        }
        for frame in range.map(FrameIndex) {
            let Some(before) = state.frames.set_removed(frame) else { continue };
            match before.phase {
                Phase::Requested => {
                    state.accounts.give_back(1);
                    state.end_speculative(before.flags);
                }
                Phase::Staged => {
                    let mut staging = state.staging.lock();
                    let page = staging.take(frame).flatten();
                    staging.recycle(page);
                    state.accounts.give_back(1);
                }
                Phase::Present | Phase::Refilled => {
                    state.accounts.remove_resident(state.color(frame));
                }
                // No page is installed while the gate is closed.
                Phase::Installing => {}
                // A mapped frame was never charged to the clone's account.
                Phase::Absent
                | Phase::Queued
                | Phase::Removed
                | Phase::Mapped
                | Phase::Unavailable => {}
            }
        }
        Ok(())
    }
}
