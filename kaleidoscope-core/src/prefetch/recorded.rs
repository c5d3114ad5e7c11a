//! Following a recording as far as the clone does.
//!
//! A recording is read ahead as a kernel reads a file ahead: a fault on a frame just beyond what was read says that the
//! clone goes the recorded way, and doubles how far the next read goes; a fault elsewhere in the recording starts another,
//! short one there; a fault outside is left to the colors. So a recording of the same command is streamed whole after a
//! dozen faults, and one of another command costs no more than a few short reads, without anybody having to say which it is.

use super::{Colored, Fault, Guide, Itinerary, Planner, PrefetchPolicy};
use crate::addr::FrameIndex;
use std::ops::Range;
use std::sync::Arc;

/// Stops of a first read.
const FIRST: usize = 32;

/// Stops of the longest read.
const LONGEST: usize = 1 << 14;

/// Reads that are remembered; the least recently confirmed is forgotten.
const READERS: usize = 8;

/// A read is sure of its way when it has become this long.
const SURE: usize = 256;

/// Reads part of the itinerary ahead of the clone.
#[derive(Clone, Copy, Debug, Default)]
struct Reader {
    /// The next stop to stream.
    next: usize,
    /// The stop before which to stream.
    end: usize,
    /// Stops of the last read.
    length: usize,
    /// When it was last confirmed, in confirmations.
    confirmed: u32,
}

impl Reader {
    /// Whether a fault at a stop says that the clone goes this way: beyond what was read, but not far.
    fn meets(&self, stop: usize) -> bool {
        self.length > 0 && (self.next..self.end + 2 * self.length.max(FIRST)).contains(&stop)
    }
}

/// When to stream what the colors predict.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Predict {
    /// From the start: the recording is of another kernel and says little of this one's memory.
    #[default]
    Always,
    /// When the clone leaves the recorded way: a recording of this kernel knows better.
    Lost,
}

/// A recording read ahead along the clone's way, with the colored policy beside it.
#[derive(Clone, Debug)]
pub struct Recorded {
    name: String,
    colors: Colored,
    itinerary: Arc<Itinerary>,
    predict: Predict,
    readers: [Reader; READERS],
    confirmations: u32,
    /// Faults outside the itinerary since the last confirmation.
    misses: u32,
}

impl Recorded {
    /// A policy for one clone.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        guide: Arc<Guide>,
        itinerary: Arc<Itinerary>,
        predict: Predict,
    ) -> Self {
        let mut readers = [Reader::default(); READERS];
        if let Some(first) = readers.first_mut() {
            *first =
                Reader { next: 0, end: FIRST.min(itinerary.len()), length: FIRST, confirmed: 0 };
        }
        Self {
            name: name.into(),
            colors: Colored::new(guide),
            itinerary,
            predict,
            readers,
            confirmations: 0,
            misses: 0,
        }
    }

    /// Whether the clone goes the recorded way at present.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        let longest = self.readers.iter().map(|r| r.length).max().unwrap_or(0);
        longest >= SURE && self.misses as usize <= longest
    }

    /// A fault at a stop: some reader goes on, or a new one starts.
    fn follow(&mut self, stop: usize) -> Range<usize> {
        self.confirmations += 1;
        self.misses = 0;
        let stops = self.itinerary.len();
        let met = self.readers.iter_mut().filter(|r| r.meets(stop)).max_by_key(|r| r.length);
        if let Some(reader) = met {
            reader.length = (reader.length * 2).min(LONGEST);
            reader.end = stops.min(stop.max(reader.end) + reader.length);
            reader.confirmed = self.confirmations;
            return reader.next..reader.end;
        }
        let end = stops.min(stop + FIRST);
        let fresh = Reader { next: stop, end, length: FIRST, confirmed: self.confirmations };
        if let Some(oldest) = self.readers.iter_mut().min_by_key(|r| r.confirmed) {
            *oldest = fresh;
        }
        stop..end
    }

    /// Streams what the readers have ahead of them, the longest read first.
    fn read(&mut self, planner: &mut Planner<'_>) {
        let itinerary = &self.itinerary;
        while planner.room() > 0 {
            let pending = self.readers.iter_mut().filter(|r| r.next < r.end);
            let Some(reader) = pending.max_by_key(|r| r.length) else { return };
            while planner.room() > 0 && reader.next < reader.end {
                if let Some((frame, true)) = itinerary.at(reader.next) {
                    planner.fetch_used(frame);
                }
                reader.next += 1;
            }
        }
    }
}

impl PrefetchPolicy for Recorded {
    fn name(&self) -> &str {
        &self.name
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        let Some(stop) = self.itinerary.stop(fault.frame) else {
            self.misses = self.misses.saturating_add(1);
            let known = self.is_sure().then(|| Arc::clone(&self.itinerary));
            self.colors.fault_beside(fault, known.as_deref(), planner);
            return;
        };
        self.follow(stop);
        self.read(planner);
        if !self.is_sure() {
            self.colors.fault(fault, planner);
        }
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        self.read(planner);
        if self.predict == Predict::Always || (!self.is_sure() && self.confirmations > 0) {
            self.colors.background(planner);
        }
    }
}

/// Streams a set of frames as it is, then goes on as another policy.
///
/// For sets that are trusted whole: what a throwaway clone touched when it idled after the freeze; or, before a
/// [`Demand`](super::Demand) policy, what today's record-and-replay does (REAP, Ustiugov et al., ASPLOS 2021).
#[derive(Debug)]
pub struct Streamed<P> {
    name: String,
    frames: Arc<[FrameIndex]>,
    next: usize,
    then: P,
}

impl<P: PrefetchPolicy> Streamed<P> {
    /// The frames in the order in which to stream them.
    #[must_use]
    pub fn new(name: impl Into<String>, frames: Arc<[FrameIndex]>, then: P) -> Self {
        Self { name: name.into(), frames, next: 0, then }
    }
}

impl<P: PrefetchPolicy> PrefetchPolicy for Streamed<P> {
    fn name(&self) -> &str {
        &self.name
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        self.then.fault(fault, planner);
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        while planner.room() > 0
            && let Some(frame) = self.frames.get(self.next)
        {
            planner.fetch_used(*frame);
            self.next += 1;
        }
        self.then.background(planner);
    }

    fn feedback(&mut self, frame: FrameIndex, outcome: super::Outcome) {
        self.then.feedback(frame, outcome);
    }
}
