//! What the clone's memory reports.

use super::engine::{Inner, SLICE};
use super::options::Stopped;
use super::ports::Event;
use super::retry::Retry;
use super::states::Phase;
use crate::addr::FrameIndex;
use crate::sync::Ordering;
use std::ops::Range;

/// Events that are read at once.
const AT_ONCE: usize = 256;

impl Inner {
    /// The loop of one fault thread.
    pub(super) fn serve(&self) -> Result<(), Stopped> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let mut idle = Retry::endless();
        loop {
            self.check()?;
            if self.closed.load(Ordering::Acquire) {
                return Ok(());
            }
            let deferred = self.deferred.lock().pop_front();
            let event = match deferred {
                Some((frame, access)) => Some(Event::Fault { frame, access }),
                None => {
                    let start = self.clock.now();
                    queue.wait(SLICE)?;
                    let event = self.read_event()?;
                    let has_waited =
                        event.is_some() || self.clock.now().saturating_sub(start) >= SLICE / 2;
                    self.rest(has_waited, &mut idle);
                    event
                }
            };
            if let Some(Event::Fault { frame, access }) = event {
                self.fault(frame, access)?;
            }
        }
    }

    /// Reads one event. What is given back is taken note of before any other page is placed.
    fn read_event(&self) -> Result<Option<Event>, Stopped> {
        let Some(queue) = &self.queue else { return Ok(None) };
        let gate = self.gate.write();
        let mut event = queue.read()?;
        let mut has_removed = false;
        // One giving back may come as several events. A guest that makes events as fast as they are
        // read does not keep the gate.
        for _ in 0..AT_ONCE {
            let Some(Event::Removed(frames)) = &event else { break };
            self.removed(frames.clone())?;
            has_removed = true;
            event = queue.read()?;
        }
        if let Some(Event::Removed(frames)) = &event {
            self.removed(frames.clone())?;
        }
        drop(gate);
        if has_removed {
            self.waiters.wake();
        }
        if event == Some(Event::Closed) {
            self.closed.store(true, Ordering::Release);
        }
        Ok(event)
    }

    /// Something is not possible while the clone's memory changes: reads how it does, and waits a
    /// little.
    ///
    /// # Errors
    /// [`Stopped::Timeout`] when it was tried for too long.
    pub(super) fn try_again(&self, frame: FrameIndex, retry: &mut Retry) -> Result<(), Stopped> {
        self.read_events()?;
        self.in_time(frame, retry)
    }

    /// Waits a little before what is about a frame is tried again.
    ///
    /// # Errors
    /// [`Stopped::Timeout`] when it was tried for too long.
    pub(super) fn in_time(&self, frame: FrameIndex, retry: &mut Retry) -> Result<(), Stopped> {
        if retry.pause(&*self.clock) {
            return Ok(());
        }
        Err(Stopped::Timeout { frame, timeout: self.options.timeout })
    }

    /// Before a port is asked once more that may have come back at once with nothing: it is asked
    /// ever less often then.
    pub(super) fn rest(&self, has_waited: bool, idle: &mut Retry) {
        if has_waited {
            idle.reset();
        } else {
            // Without an end: the caller looks whether there is one.
            let _ = idle.pause(&*self.clock);
        }
    }

    /// Reads events, all that there are as a rule, and leaves the faults among them for later:
    /// pages cannot be placed before.
    pub(super) fn read_events(&self) -> Result<(), Stopped> {
        self.check()?;
        // A guest that makes events as fast as they are read does not keep a thread here: who calls
        // this has a time limit.
        for _ in 0..AT_ONCE {
            let Some(event) = self.read_event()? else { break };
            match event {
                Event::Fault { frame, access } => {
                    self.deferred.lock().push_back((frame, access));
                    // This thread has a page in hand; the streaming one may be free.
                    self.waiters.kick();
                }
                Event::Closed => return Err(Stopped::Ended),
                Event::Removed(_) => {}
            }
        }
        Ok(())
    }

    /// Answers faults that were read at a bad time.
    pub(super) fn answer_deferred(&self) -> Result<(), Stopped> {
        loop {
            let deferred = self.deferred.lock().pop_front();
            let Some((frame, access)) = deferred else { return Ok(()) };
            self.fault(frame, access)?;
        }
    }

    /// The guest gave frames back. The gate is held exclusively.
    pub(super) fn removed(&self, range: Range<u32>) -> Result<(), Stopped> {
        let frames = self.locality.frames();
        if range.start > range.end || range.end > frames {
            let frame = FrameIndex(range.end.saturating_sub(1).max(range.start));
            return Err(Stopped::NoSuchFrame { frame, frames });
        }
        for frame in range.map(FrameIndex) {
            let Some(before) = self.states.removed(frame) else { continue };
            match before.phase {
                Phase::Requested => {
                    self.memory.give_back(1);
                    if before.flags.ahead() {
                        self.ahead.fetch_sub(1, Ordering::AcqRel);
                    }
                }
                Phase::Staged => {
                    let mut staging = self.staging.lock();
                    let page = staging.take(frame).flatten();
                    staging.recycle(page);
                    self.memory.give_back(1);
                }
                Phase::Present | Phase::Refilled => self.memory.leave(self.color(frame)),
                // Nobody places while the gate is held.
                Phase::Placing => {}
                // What is shown was never on the clone's account.
                Phase::Absent
                | Phase::Queued
                | Phase::Removed
                | Phase::Shown
                | Phase::Unavailable => {}
            }
        }
        Ok(())
    }
}
