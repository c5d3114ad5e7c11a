//! The streaming thread: keeps a bounded number of frames on their way while nobody waits.

use super::deliver::{Attempt, Origin, Staged};
use super::engine::{Inner, SLICE};
use super::options::{Background, Stopped};
use super::ports::Priority;
use super::retry::Retry;
use crate::addr::FrameIndex;
use crate::sync::Ordering;
use std::time::Duration;

/// Frames of one request.
const BATCH: usize = 64;

/// Longest sleep of a thread that has nothing to do: everything that gives it something also wakes
/// it.
const NAP: Duration = Duration::from_secs(10);

impl Inner {
    /// The thread's life.
    pub(super) fn stream(&self) {
        let mut idle = Retry::endless();
        while !self.stopped.load(Ordering::Acquire) {
            if let Err(why) = self.stream_some(&mut idle) {
                self.fail(why);
                return;
            }
        }
    }

    fn stream_some(&self, idle: &mut Retry) -> Result<(), Stopped> {
        self.answer_deferred()?;
        if self.memory.is_pressed() {
            self.relieve()?;
        }
        self.feed(true)?;
        if self.ahead.load(Ordering::Acquire) > 0 {
            if let Some(role) = self.waiters.receive() {
                let has_waited = self.receive(SLICE)?;
                drop(role);
                self.rest(has_waited, idle);
                return Ok(());
            }
            self.waiters.wait_for_work(SLICE, true);
            return Ok(());
        }
        if self.options.background != Background::Off {
            self.place_all_staged()?;
        }
        let nap = {
            let mut scheduler = self.scheduler.lock();
            if !self.filled.load(Ordering::Acquire) && scheduler.has_filled(self) {
                self.filled.store(true, Ordering::Release);
            }
            scheduler.fills_again_in(self)
        };
        self.waiters.wait_for_work(nap.unwrap_or(NAP), false);
        Ok(())
    }

    /// Places what is staged: the clone is to be filled, and nothing else is to come for now.
    pub(super) fn place_all_staged(&self) -> Result<(), Stopped> {
        let mut retry = Retry::new(self.options.timeout);
        loop {
            let Some(frame) = self.staging.lock().oldest() else { return Ok(()) };
            let gate = self.gate.read();
            if self.states.take_staged(frame) {
                let attempt = self.place_staged(frame, Staged::Filled)?;
                drop(gate);
                match attempt {
                    Attempt::Done => retry.reset(),
                    Attempt::Again => self.try_again(frame, &mut retry)?,
                }
            }
        }
    }

    /// Receives for everybody, for at most `wait`. The caller has the role. Says whether something
    /// came, or the wait was one: a source that comes back at once with nothing is not to keep
    /// a processor busy.
    pub(super) fn receive(&self, wait: Duration) -> Result<bool, Stopped> {
        let mut result = Ok(());
        let mut has_come = false;
        let start = self.clock.now();
        self.source.receive(wait, &mut |delivery| {
            has_come = true;
            if result.is_ok() {
                result = self.deliver(delivery, Origin::Source);
            }
        })?;
        let now = self.clock.now();
        self.memory.sample(now);
        result.map(|()| has_come || now.saturating_sub(start) >= wait / 2)
    }

    /// Asks for frames ahead of any touch, as many as may be on their way.
    pub(super) fn feed(&self, may_fill: bool) -> Result<(), Stopped> {
        let window = self.source.window().max(1);
        let mut zeros = Vec::new();
        let mut batch = [FrameIndex(0); BATCH];
        loop {
            self.check()?;
            let asked = {
                let mut scheduler = self.scheduler.lock();
                let room = window.saturating_sub(self.ahead.load(Ordering::Acquire));
                // Small requests cost as much as large ones: rather wait for room.
                if room < (window / 4).min(BATCH / 2) {
                    return Ok(());
                }
                let granted = self.memory.take_for_prefetch(room.min(BATCH));
                let batch = batch.get_mut(..granted).unwrap_or_default();
                let asked = scheduler.next(batch, may_fill, self, &mut zeros);
                self.memory.give_back(granted - asked);
                self.ahead.fetch_add(asked, Ordering::AcqRel);
                asked
            };
            if let Some(asked @ [_, ..]) = batch.get(..asked) {
                self.request(asked, Priority::Prefetch)?;
            }
            self.zero_ahead(&mut zeros)?;
            zeros.clear();
            if asked < BATCH {
                return Ok(());
            }
        }
    }
}
