//! Following a recording as far as the clone does.
//!
//! A recording is read ahead as a kernel reads a file ahead: a fault on a frame just beyond what
//! was read says that the clone goes the recorded way, and doubles how far the next read goes; a
//! fault elsewhere in the recording starts another, short one there; a fault outside is left to the
//! colors. So a recording of the same command is streamed whole after a dozen faults, and one of
//! another command costs no more than a few short reads, without anybody having to say which it is.

use super::{ColorGuide, Colored, Fault, Planner, PrefetchPolicy, RecordedOrder};
use crate::addr::FrameIndex;
use std::sync::Arc;

/// Stops of a first read.
const FIRST: usize = 10;

/// Stops of the longest read.
const LONGEST: usize = 1 << 14;

/// A fault this part of a read's length beyond its end still confirms it. Larger slacks let chance
/// hits in a recording of something else pass for the recorded way.
const SLACK: usize = 16;

/// Reads that are remembered; the least recently confirmed is forgotten.
const READERS: usize = 8;

/// Trust at the start, in misses that it takes to lose it.
const TRUST: u32 = 4;

/// Most trust.
const MOST_TRUST: u32 = 512;

/// Pages of the window around the first miss in a region that the recording has been to.
const FIRST_MISS: u32 = 2;

/// Reads part of the recorded_order ahead of the clone.
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
    /// Whether a fault at a stop says that the clone goes this way: beyond what was read, but not
    /// far.
    fn meets(&self, stop: usize) -> bool {
        let slack = (self.length / SLACK).max(FIRST / 2);
        self.length > 0 && (self.next..self.end + slack).contains(&stop)
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
    recorded_order: Arc<RecordedOrder>,
    predict: Predict,
    /// Place in the prediction up to which recorded frames were streamed.
    agreed: usize,
    readers: [Reader; READERS],
    confirmations: u32,
    /// How many more misses it takes until the recording is held to be of something else.
    trust: u32,
    /// Misses in each stretch that the recording has been to.
    misses: Vec<u8>,
}

impl Recorded {
    /// A policy for one clone.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        guide: Arc<ColorGuide>,
        recorded_order: Arc<RecordedOrder>,
        predict: Predict,
    ) -> Self {
        let mut readers = [Reader::default(); READERS];
        if let Some(first) = readers.first_mut() {
            *first = Reader {
                next: 0,
                end: FIRST.min(recorded_order.len()),
                length: FIRST,
                confirmed: 0,
            };
        }
        let misses = vec![0; guide.locality().stretches()];
        Self {
            name: name.into(),
            colors: Colored::new(guide),
            recorded_order,
            predict,
            agreed: 0,
            readers,
            confirmations: 0,
            trust: TRUST,
            misses,
        }
    }

    /// Whether the clone goes the recorded way as far as can be told.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.trust > 0
    }

    /// A fault at a stop: some reader goes on, or a new one starts.
    fn follow(&mut self, stop: usize) {
        self.confirmations += 1;
        let stops = self.recorded_order.len();
        let met = self.readers.iter_mut().filter(|r| r.meets(stop)).max_by_key(|r| r.length);
        if let Some(reader) = met {
            reader.length = (reader.length * 2).min(LONGEST);
            reader.end = stops.min(stop.max(reader.end) + reader.length);
            reader.confirmed = self.confirmations;
            let more = u32::try_from(reader.length / FIRST).unwrap_or(MOST_TRUST);
            self.trust = self.trust.saturating_add(more).min(MOST_TRUST);
            return;
        }
        let end = stops.min(stop + FIRST);
        let fresh = Reader { next: stop, end, length: FIRST, confirmed: self.confirmations };
        if let Some(oldest) = self.readers.iter_mut().min_by_key(|r| r.confirmed) {
            *oldest = fresh;
        }
    }

    /// A fault at no stop.
    fn miss(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        if planner.locality().is_free(fault.frame) {
            self.colors.fault(fault, planner);
            return;
        }
        self.trust = self.trust.saturating_sub(1);
        if self.trust == 0 {
            // Whoever is met again must show anew that this is the way.
            self.readers.iter_mut().for_each(|r| r.length = r.length.min(FIRST));
            self.colors.fault(fault, planner);
            return;
        }
        let stretch = planner.locality().stretch(fault.frame).unwrap_or(u32::MAX);
        let misses =
            self.misses.get_mut(stretch as usize).filter(|_| self.recorded_order.visits(stretch));
        let most = misses.map(|misses| {
            *misses = misses.saturating_add(1);
            FIRST_MISS << u32::from(*misses - 1).min(16)
        });
        self.colors.fault_within(fault, most.unwrap_or(u32::MAX), planner);
    }

    /// Streams what the readers have ahead of them, the longest read first.
    fn read(&mut self, planner: &mut Planner<'_>) {
        let recorded_order = &self.recorded_order;
        while planner.room() > 0 {
            let pending = self.readers.iter_mut().filter(|r| r.next < r.end);
            let Some(reader) = pending.max_by_key(|r| r.length) else { return };
            while planner.room() > 0 && reader.next < reader.end {
                if let Some((frame, true)) = recorded_order.at(reader.next) {
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
        let Some(stop) = self.recorded_order.stop(fault.frame) else {
            self.miss(fault, planner);
            return;
        };
        if fault.in_flight {
            // It was read ahead already, only not far enough ahead of the clone.
            self.read(planner);
            return;
        }
        self.follow(stop);
        self.read(planner);
        if !self.is_trusted() {
            self.colors.fault(fault, planner);
        }
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        // What both the recording and the colors expect is as good as sure.
        while planner.room() > 0
            && let Some(frame) = self.colors.guide().predicted().get(self.agreed)
        {
            if self.recorded_order.stop(*frame).is_some() {
                planner.fetch_used(*frame);
            }
            self.agreed += 1;
        }
        self.read(planner);
        if self.predict == Predict::Always || !self.is_trusted() {
            self.colors.background(planner);
        }
    }
}

/// Streams a set of frames as it is, then goes on as another policy.
///
/// For sets that are trusted whole: what a throwaway clone touched when it idled after the freeze;
/// or, before a [`Demand`](super::Demand) policy, what today's record-and-replay does (REAP,
/// Ustiugov et al., ASPLOS 2021).
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

    fn feedback(&mut self, frame: FrameIndex, outcome: super::PrefetchOutcome) {
        self.then.feedback(frame, outcome);
    }
}
