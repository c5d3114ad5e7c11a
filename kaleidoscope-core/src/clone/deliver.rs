//! The way of a page into the clone.

use super::engine::Inner;
use super::options::{Feedback, Stopped};
use super::ports::{Delivery, Installed, SourceError};
use super::retry::Retry;
use super::states::Flags;
use super::statistics::Count;
use crate::addr::FrameIndex;
use crate::memory::Page;
use crate::prefetch::PrefetchOutcome;
use crate::sync::Ordering;

/// Who says what a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// The source.
    Source,
    /// The engine: it is free.
    Here,
    /// Whoever had it on this host.
    LocalCache,
}

/// Why a staged page enters the clone's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Staged {
    /// The clone touched it.
    Touched,
    /// The clone is filled.
    Filled,
}

/// What became of an attempt to place a page that needs no source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Attempt {
    /// It is there.
    Done,
    /// The memory is changing: read its events, and try again.
    Again,
}

impl Inner {
    /// Takes in what the source says of a frame.
    pub(super) fn deliver(&self, delivery: Delivery<'_>, origin: Origin) -> Result<(), Stopped> {
        let frame = delivery.frame();
        let frames = self.locality.frames();
        if frame.0 >= frames {
            let what = format!("it delivered frame {frame} of a guest with {frames} frames");
            return Err(SourceError::new(what).into());
        }
        let mut retry = Retry::new(self.options.timeout);
        while self.try_deliver(delivery, origin)? == Attempt::Again {
            self.try_again(frame, &mut retry)?;
        }
        if let (Origin::Source, Delivery::Page(_, page), Some(local_cache)) =
            (origin, delivery, &self.local_cache)
        {
            // Whoever waited for it runs by now.
            local_cache.keep(frame, page);
        }
        self.fill_with_zeros_around(frame)
    }

    fn try_deliver(&self, delivery: Delivery<'_>, origin: Origin) -> Result<Attempt, Stopped> {
        let _gate = self.gate.read();
        self.try_deliver_at_gate(delivery, origin)
    }

    /// The gate is held.
    pub(super) fn try_deliver_at_gate(
        &self,
        delivery: Delivery<'_>,
        origin: Origin,
    ) -> Result<Attempt, Stopped> {
        let frame = delivery.frame();
        let page = match delivery {
            Delivery::Page(_, page) => Some(page),
            Delivery::Zero(_) => None,
            Delivery::Unavailable(_) => {
                if let Some(flags) = self.states.unavailable(frame) {
                    self.memory.give_back(1);
                    self.arrived(flags);
                }
                return Ok(Attempt::Done);
            }
        };
        let Some(flags) = self.states.arrive(frame) else {
            self.counters.add(self.color(frame), Count::Dropped);
            return Ok(Attempt::Done);
        };
        if flags.prefetched
            && !flags.wanted
            && self.is_sampled(frame)
            && self.put_aside(frame, page)
        {
            self.count_arrival(frame, page, flags, origin);
            self.arrived(flags);
            return Ok(Attempt::Done);
        }
        if self.install(frame, page)? == Installed::TryAgain {
            self.states.retry(frame);
            return Ok(Attempt::Again);
        }
        let flags = self.states.placed(frame);
        self.memory.enter(self.color(frame));
        self.count_arrival(frame, page, flags, origin);
        self.arrived(flags);
        Ok(Attempt::Done)
    }

    fn install(&self, frame: FrameIndex, page: Option<&Page>) -> Result<Installed, Stopped> {
        let placed = match page {
            Some(page) => self.installer.install(frame, page)?,
            None => self.installer.zero(frame)?,
        };
        if placed == Installed::AlreadyPresent {
            // Whoever filled it need not know of the vCPUs that wait for us.
            self.installer.wake(frame)?;
        }
        Ok(placed)
    }

    /// The source has answered for a frame.
    fn arrived(&self, flags: Flags) {
        if flags.ahead() {
            self.ahead.fetch_sub(1, Ordering::AcqRel);
        }
        self.settled(flags);
    }

    /// Nobody is at work on a frame any more: who waits for it looks again.
    pub(super) fn settled(&self, flags: Flags) {
        if flags.wanted {
            self.waiters.wake();
        }
    }

    fn count_arrival(&self, frame: FrameIndex, page: Option<&Page>, flags: Flags, origin: Origin) {
        match origin {
            Origin::Here => return,
            Origin::LocalCache => {
                self.counters.add(self.color(frame), Count::LocalCache);
                return;
            }
            Origin::Source => {}
        }
        let count = match flags {
            Flags { prefetched: true, .. } => Count::Prefetched,
            Flags { fill: true, .. } => Count::Filled,
            Flags { .. } => Count::Fetched,
        };
        self.counters.add(self.color(frame), count);
        if page.is_some() {
            self.counters.moved();
        }
    }

    /// Whether the use of a prefetched frame is to be known.
    fn is_sampled(&self, frame: FrameIndex) -> bool {
        match self.options.feedback {
            Feedback::Off | Feedback::Sampled { one_in: 0 } => false,
            Feedback::Staged => true,
            Feedback::Sampled { one_in } => {
                // Spread over neighbors: Fibonacci hashing (Knuth, TAOCP vol. 3, 6.4).
                (frame.0.wrapping_mul(0x9e37_79b1) >> 8).is_multiple_of(one_in)
            }
        }
    }

    /// Stages a page; `false` when somebody waits for it by now.
    fn put_aside(&self, frame: FrameIndex, page: Option<&Page>) -> bool {
        while self.staging.lock().is_full()
            && let Some(oldest) = self.drop_staged()
        {
            self.unused(oldest);
        }
        let mut staging = self.staging.lock();
        let is_staged = self.states.stage(frame);
        if is_staged {
            staging.put(frame, page);
        }
        is_staged
    }

    /// Places a staged frame that the thread owns, touched or not. The gate is held.
    pub(super) fn place_staged(&self, frame: FrameIndex, why: Staged) -> Result<Attempt, Stopped> {
        let Some(page) = self.staging.lock().take(frame) else {
            // Cannot be; but then the frame is fetched again rather than guessed.
            let flags = self.states.emptied(frame);
            self.memory.give_back(1);
            self.settled(flags);
            return Ok(Attempt::Again);
        };
        if self.install(frame, page.as_deref())? == Installed::TryAgain {
            let mut staging = self.staging.lock();
            staging.put(frame, page.as_deref());
            let flags = self.states.stage_again(frame);
            drop(staging);
            self.settled(flags);
            return Ok(Attempt::Again);
        }
        let flags = self.states.placed(frame);
        self.settled(flags);
        self.staging.lock().recycle(page);
        self.memory.enter(self.color(frame));
        if why == Staged::Touched {
            self.counters.add(self.color(frame), Count::StagedFaults);
            self.counters.add(self.color(frame), Count::Used);
            self.scheduler.lock().feedback(frame, PrefetchOutcome::Used);
        }
        Ok(Attempt::Done)
    }

    /// Fills a frame that was given back and that the thread owns with zeros. The gate is held.
    pub(super) fn place_zeros(&self, frame: FrameIndex) -> Result<Attempt, Stopped> {
        let (flags, attempt) = match self.installer.zero(frame)? {
            Installed::TryAgain => (self.states.leave_removed(frame), Attempt::Again),
            Installed::AlreadyPresent => {
                // These are the zeros of an earlier fault, or bytes that are about to go: the vCPU
                // looks again, and faults again if they are gone.
                let flags = self.states.leave_removed(frame);
                self.installer.wake(frame)?;
                (flags, Attempt::Done)
            }
            Installed::Installed => {
                let flags = self.states.refilled(frame);
                if !flags.refilled {
                    self.memory.take_for_fault();
                    self.memory.enter(self.color(frame));
                }
                self.counters.add(self.color(frame), Count::ZeroFaults);
                (flags, Attempt::Done)
            }
        };
        self.settled(flags);
        Ok(attempt)
    }

    /// Fills free frames with zeros ahead of any touch, run by run.
    pub(super) fn zero_ahead(&self, frames: &mut [FrameIndex]) -> Result<(), Stopped> {
        if frames.is_empty() {
            return Ok(());
        }
        let taken = self.memory.take_for_prefetch(frames.len());
        let frames = frames.get_mut(..taken).unwrap_or_default();
        frames.sort_unstable();
        let mut left = taken;
        let result = self.zero_runs(frames, &mut left);
        self.memory.give_back(left);
        result
    }

    /// Fills frames with zeros, and counts down `left` for each.
    fn zero_runs(&self, frames: &[FrameIndex], left: &mut usize) -> Result<(), Stopped> {
        let mut rest = frames;
        while let Some(first) = rest.first() {
            let _gate = self.gate.read();
            let follows = |(n, frame): (u32, &FrameIndex)| {
                frame.0 == first.0.saturating_add(n) && self.states.take_for_zeros(*frame)
            };
            let taken = (0u32..).zip(rest).take_while(|pair| follows(*pair)).count();
            let run = rest.get(..taken).unwrap_or_default();
            // The first one may be there by now.
            rest = rest.get(taken.max(1)..).unwrap_or_default();
            if let Some(last) = run.last() {
                let filled = self.installer.zero_run(first.0..last.0.saturating_add(1))?;
                for (n, frame) in (0u32..).zip(run) {
                    let flags = if n < filled {
                        *left -= 1;
                        self.counters.add(self.color(*frame), Count::ZeroedAhead);
                        self.memory.enter(self.color(*frame));
                        self.states.placed(*frame)
                    } else {
                        self.states.emptied(*frame)
                    };
                    self.settled(flags);
                }
            }
        }
        Ok(())
    }
}
