//! Memory that is filled several frames at a time: a clone on 2 MiB pages.
//!
//! Its memory tells of a fault on a page of the host, a *granule*, and has it filled as a whole.
//! Colors, requests and plans stay with frames: of a granule only those are fetched that are not
//! free, and what was prefetched of it need not come again.

use super::deliver::{Attempt, Origin, Staged};
use super::engine::Inner;
use super::options::Stopped;
use super::ports::{Delivery, Priority};
use super::retry::Retry;
use super::states::Step;
use super::statistics::Count;
use crate::addr::FrameIndex;
use crate::memory::LazyTable;
use crate::prefetch::{Access, Fault};
use crate::sync::{AtomicBool, Ordering};
use std::ops::Range;
use std::time::Duration;

/// Which frames are filled together.
#[derive(Debug)]
pub(super) struct Granules {
    /// Frames of each, at least one.
    frames: u32,
    /// Frames of the guest.
    all: u32,
    /// Whether somebody has taken care of a granule's free frames.
    free_frames_done: LazyTable<AtomicBool>,
}

/// What a fault has to wait for.
#[derive(Debug, Default)]
struct Missing {
    /// To ask for, or to ask for again as urgent.
    ask: Vec<FrameIndex>,
    /// Free, and to be filled here when the memory is no longer changing.
    zeros: Vec<FrameIndex>,
    /// Some are on their way.
    waits: bool,
    /// Nobody had asked for some of them.
    is_new: bool,
}

impl Granules {
    /// Granules of so many frames (0 is 1) of a guest with `all`, by frame index.
    pub(super) fn new(frames: u32, all: u32) -> Self {
        let frames = frames.max(1);
        let granules = if frames == 1 { 0 } else { all.div_ceil(frames) as usize };
        Self { frames, all, free_frames_done: LazyTable::new(granules) }
    }

    /// The frames that are filled with this one, if there are others.
    pub(super) fn of(&self, frame: FrameIndex) -> Option<Range<u32>> {
        let start = frame.0 / self.frames * self.frames;
        (self.frames > 1).then(|| start..start.saturating_add(self.frames).min(self.all))
    }
}

impl Inner {
    /// Answers a fault on a granule; returns when all of it is there.
    pub(super) fn fault_granule(
        &self,
        granule: &Range<u32>,
        frame: FrameIndex,
        access: Access,
    ) -> Result<(), Stopped> {
        let start = self.clock.now();
        let mut retry = Retry::since(start, self.options.timeout);
        let mut stalled = false;
        loop {
            self.check()?;
            let mut missing = Missing::default();
            let mut rest = granule.clone();
            // From where it was interrupted: what was zeroed once would be zeroed again.
            while self.claim(&mut rest, &mut missing)? == Attempt::Again {
                self.try_again(frame, &mut retry)?;
            }
            if !missing.waits {
                break;
            }
            let is_first = !stalled;
            stalled = true;
            self.ask(&missing)?;
            if is_first {
                self.tell(Fault { frame, access, in_flight: !missing.is_new }, &missing)?;
            }
            for frame in granule.clone().map(FrameIndex) {
                self.wait_for(frame, start)?;
            }
            if !is_first {
                // Some of it came, and is gone again.
                self.in_time(frame, &mut retry)?;
            }
        }
        if stalled {
            self.stalled(frame, start);
        } else {
            // It came between the touch and here, and the vCPU may still sleep.
            self.installer.wake(frame)?;
        }
        Ok(())
    }

    /// Places what is at hand of the rest of a granule, and says what is missing of it.
    fn claim(&self, rest: &mut Range<u32>, missing: &mut Missing) -> Result<Attempt, Stopped> {
        let _gate = self.gate.read();
        while let Some(frame) = rest.clone().next().map(FrameIndex) {
            let attempt = match self.states.fault(frame) {
                Step::Present => Attempt::Done,
                Step::Unavailable => return Err(Stopped::Unavailable { frame }),
                Step::Unstage => self.place_staged(frame, Staged::Touched)?,
                Step::Zero => self.place_zeros(frame)?,
                Step::Ask => {
                    // Before anybody can give the frame back.
                    self.memory.take_for_fault();
                    missing.waits = true;
                    missing.is_new = true;
                    if !self.is_free(frame) {
                        missing.ask.push(frame);
                    } else if self.try_deliver_at_gate(Delivery::Zero(frame), Origin::Here)?
                        == Attempt::Again
                    {
                        missing.zeros.push(frame);
                    }
                    Attempt::Done
                }
                Step::Hurry => {
                    missing.ask.push(frame);
                    missing.waits = true;
                    Attempt::Done
                }
                Step::Wait => {
                    missing.waits = true;
                    Attempt::Done
                }
            };
            if attempt == Attempt::Again {
                return Ok(Attempt::Again);
            }
            rest.start += 1;
        }
        Ok(Attempt::Done)
    }

    /// Has what is missing come.
    fn ask(&self, missing: &Missing) -> Result<(), Stopped> {
        if !missing.ask.is_empty() {
            self.request(&missing.ask, Priority::Urgent)?;
        }
        for frame in &missing.zeros {
            self.deliver(Delivery::Zero(*frame), Origin::Here)?;
        }
        Ok(())
    }

    /// Counts a fault, and tells the policy of it.
    fn tell(&self, fault: Fault, missing: &Missing) -> Result<(), Stopped> {
        let count = match (missing.is_new, missing.ask.is_empty()) {
            (false, _) => Count::Late,
            (true, true) => Count::ZeroFaults,
            (true, false) => Count::Faults,
        };
        self.counters.add(self.color(fault.frame), count);
        let mut zeros = Vec::new();
        self.scheduler.lock().fault(&fault, self, &mut zeros);
        self.zero_ahead(&mut zeros)?;
        self.feed(false)
    }

    /// A frame came: the free ones that are filled with it need not wait for a fault.
    pub(super) fn fill_with_zeros_around(&self, frame: FrameIndex) -> Result<(), Stopped> {
        let Some(granule) = self.granules.of(frame) else { return Ok(()) };
        let number = (granule.start / self.granules.frames) as usize;
        let Some(is_done) = self.granules.free_frames_done.get(number) else { return Ok(()) };
        if is_done.load(Ordering::Relaxed) || is_done.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let free = granule.map(FrameIndex).filter(|frame| self.is_free(*frame));
        self.zero_ahead(&mut free.collect::<Vec<_>>())
    }

    /// A fault that had to wait is over.
    pub(super) fn stalled(&self, frame: FrameIndex, start: Duration) {
        let now = self.clock.now();
        self.counters.stalled(self.color(frame), now.saturating_sub(start));
        self.memory.sample(now);
        if self.ahead.load(Ordering::Acquire) > 0 {
            // Others are on their way, and this thread no longer receives them.
            self.waiters.kick();
        }
    }
}
