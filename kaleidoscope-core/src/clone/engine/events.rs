//! Events of the clone's memory, and the gate that keeps pages out while they are read.

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

/// Events that are read at once.
const EVENT_BATCH: usize = 256;

/// Reads events.
///
/// A frame that the guest gave back must not be filled with the parent's bytes between the instant
/// at which it is given back and the instant at which the engine knows. So pages are installed with
/// the gate shared, and events are read with the gate exclusive.
pub(super) struct Events {
    pub(super) state: CloneState,
    queue: Option<Arc<dyn FaultQueue>>,
    gate: RwLock<()>,
    /// Faults that were read by threads that could not answer them.
    deferred: Mutex<VecDeque<(FrameIndex, Access)>>,
    /// The VM has ended.
    closed: AtomicBool,
}

impl Events {
    pub(super) fn new(state: CloneState, queue: Option<Arc<dyn FaultQueue>>) -> Self {
        Self {
            state,
            queue,
            gate: RwLock::new(()),
            deferred: Mutex::new(VecDeque::new()),
            closed: AtomicBool::new(false),
        }
    }

    /// Lets pages into the clone's memory, and keeps events from being read.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    /// Keeps pages out of the clone's memory.
    pub(super) fn close_gate(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write()
    }

    pub(super) fn has_queue(&self) -> bool {
        self.queue.is_some()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A fault that was read and not answered.
    pub(super) fn next_deferred(&self) -> Option<(FrameIndex, Access)> {
        self.deferred.lock().pop_front()
    }

    /// Waits for an event and reads it. Returns none when there was none for a while.
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

    /// Reads the next event. Frames that were given back are recorded before any page is installed.
    fn read(&self) -> Result<Option<Event>, Stopped> {
        let Some(queue) = &self.queue else { return Ok(None) };
        let gate = self.close_gate();
        let mut event = queue.read()?;
        let mut has_removed = false;
        // One giving back may come as several events, so the gate stays closed until another event
        // comes, or so many.
        for _ in 0..EVENT_BATCH {
            let Some(Event::Removed(frames)) = &event else { break };
            self.remove(frames.clone())?;
            has_removed = true;
            event = queue.read()?;
        }
        if let Some(Event::Removed(frames)) = &event {
            self.remove(frames.clone())?;
        }
        drop(gate);
        if has_removed {
            self.state.waiters.wake();
        }
        if event == Some(Event::Closed) {
            self.closed.store(true, Ordering::Release);
        }
        Ok(event)
    }

    /// The clone's memory cannot take a page while it changes: reads the events that tell how it
    /// changes, and pauses.
    ///
    /// # Errors
    /// [`Stopped::Timeout`] when the attempts took too long.
    pub(super) fn before_retry(&self, frame: FrameIndex, retry: &mut Retry) -> Result<(), Stopped> {
        self.read_all()?;
        self.state.pause(frame, retry)
    }

    /// Reads all events, and leaves the faults among them for later. A guest that makes events as
    /// fast as they are read does not keep a thread here: the caller has a deadline.
    pub(super) fn read_all(&self) -> Result<(), Stopped> {
        self.state.check()?;
        for _ in 0..EVENT_BATCH {
            let Some(event) = self.read()? else { break };
            match event {
                Event::Fault { frame, access } => {
                    self.deferred.lock().push_back((frame, access));
                    // This thread has a page in hand; the streaming thread may be idle.
                    self.state.waiters.kick();
                }
                Event::Closed => return Err(Stopped::Ended),
                Event::Removed(_) => {}
            }
        }
        Ok(())
    }

    /// Records that the guest gave frames back. The gate is closed.
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
                // A mapped frame was never on the clone's account.
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
