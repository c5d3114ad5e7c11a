//! The way of a fault.

use super::deliver::{Attempt, Origin, Staged};
use super::engine::{Inner, SLICE};
use super::options::Stopped;
use super::ports::{Delivery, Priority};
use super::retry::Retry;
use super::states::Step;
use super::statistics::Count;
use crate::addr::FrameIndex;
use crate::prefetch::{Access, Answer, Fault};
use crate::sync::Ordering;
use std::time::Duration;

impl Inner {
    /// Answers a fault; returns when the frame is there.
    pub(super) fn fault(&self, frame: FrameIndex, access: Access) -> Result<(), Stopped> {
        let frames = self.locality.frames();
        if frame.0 >= frames {
            return Err(Stopped::NoSuchFrame { frame, frames });
        }
        if let Some(granule) = self.granules.of(frame) {
            return self.fault_granule(&granule, frame, access);
        }
        let start = self.clock.now();
        let mut retry = Retry::since(start, self.options.timeout);
        let mut stalled = false;
        loop {
            self.check()?;
            let gate = self.gate.read();
            let attempt = match self.states.fault(frame) {
                Step::Present => {
                    drop(gate);
                    if !stalled {
                        // It came between the touch and here, and the vCPU may still sleep.
                        self.installer.wake(frame)?;
                    }
                    break;
                }
                Step::Unavailable => return Err(Stopped::Unavailable { frame }),
                Step::Unstage => self.place_staged(frame, Staged::Touched)?,
                Step::Zero => self.place_zeros(frame)?,
                Step::Ask => {
                    // Before anybody can give the frame back.
                    self.memory.take_for_fault();
                    drop(gate);
                    self.first_touch(Fault { frame, access, in_flight: false })?;
                    self.wait_for(frame, start)?;
                    if stalled {
                        // It came, and is gone again.
                        self.in_time(frame, &mut retry)?;
                    }
                    stalled = true;
                    continue;
                }
                Step::Hurry => {
                    drop(gate);
                    self.first_wait(Fault { frame, access, in_flight: true })?;
                    self.wait_for(frame, start)?;
                    if stalled {
                        // It came, and is gone again.
                        self.in_time(frame, &mut retry)?;
                    }
                    stalled = true;
                    continue;
                }
                Step::Wait => {
                    drop(gate);
                    self.wait_for(frame, start)?;
                    if stalled {
                        // It came, and is gone again.
                        self.in_time(frame, &mut retry)?;
                    }
                    stalled = true;
                    continue;
                }
            };
            drop(gate);
            match attempt {
                Attempt::Done => break,
                Attempt::Again => self.try_again(frame, &mut retry)?,
            }
        }
        if stalled {
            self.stalled(frame, start);
        }
        Ok(())
    }

    /// Waits until a frame is no longer on its way, receiving for everybody unless somebody else
    /// does.
    pub(super) fn wait_for(&self, frame: FrameIndex, start: Duration) -> Result<(), Stopped> {
        let timeout = self.options.timeout;
        let mut idle = Retry::endless();
        while self.states.is_on_its_way(frame) {
            self.check()?;
            if self.clock.now().saturating_sub(start) > timeout {
                return Err(Stopped::Timeout { frame, timeout });
            }
            let Some(role) = self.waiters.receive() else {
                let is_over =
                    || !self.states.is_on_its_way(frame) || self.stopped.load(Ordering::Acquire);
                self.waiters.wait(SLICE, is_over);
                continue;
            };
            // Whoever had the role may have received the frame just now.
            let has_waited = !self.states.is_on_its_way(frame) || self.receive(SLICE)?;
            drop(role);
            if self.states.is_on_its_way(frame) {
                self.feed(false)?;
                self.rest(has_waited, &mut idle);
            }
        }
        Ok(())
    }

    /// A frame that nobody had asked for was touched: the thread asks.
    fn first_touch(&self, fault: Fault) -> Result<(), Stopped> {
        let frame = fault.frame;
        let mut zeros = Vec::new();
        if self.is_free(frame) {
            let answer = self.scheduler.lock().fault(&fault, self, &mut zeros);
            if answer == Answer::Zero {
                self.counters.add(self.color(frame), Count::ZeroFaults);
                self.deliver(Delivery::Zero(frame), Origin::Here)?;
            } else {
                self.counters.add(self.color(frame), Count::Faults);
                self.request(&[frame], Priority::Urgent)?;
            }
        } else {
            // The page is on its way while the policy thinks.
            self.counters.add(self.color(frame), Count::Faults);
            self.request(&[frame], Priority::Urgent)?;
            self.scheduler.lock().fault(&fault, self, &mut zeros);
        }
        self.zero_ahead(&mut zeros)?;
        self.feed(false)
    }

    /// A frame on its way was touched, for the first time.
    fn first_wait(&self, fault: Fault) -> Result<(), Stopped> {
        self.counters.add(self.color(fault.frame), Count::Late);
        self.request(&[fault.frame], Priority::Urgent)?;
        let mut zeros = Vec::new();
        self.scheduler.lock().fault(&fault, self, &mut zeros);
        self.zero_ahead(&mut zeros)?;
        self.feed(false)
    }
}
