//! Policies that follow a recording as far as the clone does.
//!
//! A recording is read ahead as a kernel reads a file ahead. A fault on a frame just beyond the
//! last read confirms that the clone follows the recording, and doubles the length of the next
//! read. A fault elsewhere in the recording starts another, short read there. A fault outside the
//! recording is answered by the colored policy. So a recording of the same command is streamed
//! whole after a dozen faults, and a recording of another command costs only a few short reads. The
//! caller does not have to say which it is.

use super::{ColorGuide, Colored, Fault, Planner, PrefetchPolicy, RecordedOrder};
use crate::addr::FrameIndex;
use std::sync::Arc;

/// Stops of the first read.
const FIRST_READ: usize = 10;

/// Stops of the longest read.
const LONGEST_READ: usize = 1 << 14;

/// A fault up to `length / SLACK_DIVISOR` stops beyond the end of a read still confirms it. With
/// more slack, chance hits in an unrelated recording would count as confirmations.
const SLACK_DIVISOR: usize = 16;

/// Concurrent reads; the least recently confirmed one is replaced.
const MAX_READERS: usize = 8;

/// Initial trust: the number of misses after which the recording is no longer trusted.
const INITIAL_TRUST: u32 = 4;

/// Upper limit of the trust.
const MAX_TRUST: u32 = 512;

/// Pages of the window around the first miss in a stretch that the recording visits.
const FIRST_MISS_PAGES: u32 = 2;

/// Reads part of the recorded order ahead of the clone.
#[derive(Clone, Copy, Debug, Default)]
struct Reader {
    /// The next stop to stream.
    next: usize,
    /// The stop before which to stream.
    end: usize,
    /// Number of stops of the last read.
    length: usize,
    /// Sequence number of the last confirmation.
    confirmed: u32,
}

impl Reader {
    /// Whether a fault at a stop confirms this reader: the stop is not yet streamed, and at most
    /// the slack beyond the end of the read.
    fn confirms(&self, stop: usize) -> bool {
        let slack = (self.length / SLACK_DIVISOR).max(FIRST_READ / 2);
        self.length > 0 && (self.next..self.end + slack).contains(&stop)
    }
}

/// When to stream the frames that the colored policy predicts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Predict {
    /// From the start: the recording is of another kernel and says little about this one's memory.
    #[default]
    Always,
    /// Once the clone has left the recorded order: a recording of this kernel predicts better.
    Lost,
}

/// Reads a recording ahead of the clone, and falls back to a colored policy.
#[derive(Clone, Debug)]
pub struct Recorded {
    name: String,
    colors: Colored,
    recorded_order: Arc<RecordedOrder>,
    predict: Predict,
    /// Index into the prediction up to which the frames that are also recorded were streamed.
    next_predicted: usize,
    readers: [Reader; MAX_READERS],
    confirmations: u32,
    /// Number of further misses until the recording counts as unrelated.
    trust: u32,
    /// Misses in each stretch.
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
        let mut readers = [Reader::default(); MAX_READERS];
        if let Some(first) = readers.first_mut() {
            *first = Reader {
                next: 0,
                end: FIRST_READ.min(recorded_order.len()),
                length: FIRST_READ,
                confirmed: 0,
            };
        }
        let misses = vec![0; guide.locality().stretches()];
        Self {
            name: name.into(),
            colors: Colored::new(guide),
            recorded_order,
            predict,
            next_predicted: 0,
            readers,
            confirmations: 0,
            trust: INITIAL_TRUST,
            misses,
        }
    }

    /// Whether the clone still follows the recording, as far as its faults show.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.trust > 0
    }

    /// Handles a fault at a stop: a reader continues, or a new one starts.
    fn follow(&mut self, stop: usize) {
        self.confirmations += 1;
        let stops = self.recorded_order.len();
        let met = self.readers.iter_mut().filter(|r| r.confirms(stop)).max_by_key(|r| r.length);
        if let Some(reader) = met {
            reader.length = (reader.length * 2).min(LONGEST_READ);
            reader.end = stops.min(stop.max(reader.end) + reader.length);
            reader.confirmed = self.confirmations;
            let more = u32::try_from(reader.length / FIRST_READ).unwrap_or(MAX_TRUST);
            self.trust = self.trust.saturating_add(more).min(MAX_TRUST);
            return;
        }
        let end = stops.min(stop + FIRST_READ);
        let fresh = Reader { next: stop, end, length: FIRST_READ, confirmed: self.confirmations };
        if let Some(oldest) = self.readers.iter_mut().min_by_key(|r| r.confirmed) {
            *oldest = fresh;
        }
    }

    /// Handles a fault on a frame that is not recorded.
    fn miss(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        if planner.locality().is_free(fault.frame) {
            self.colors.fault(fault, planner);
            return;
        }
        self.trust = self.trust.saturating_sub(1);
        if self.trust == 0 {
            // Readers must be confirmed again before they read further than a first read.
            self.readers.iter_mut().for_each(|r| r.length = r.length.min(FIRST_READ));
            self.colors.fault(fault, planner);
            return;
        }
        let stretch = planner.locality().stretch(fault.frame).unwrap_or(u32::MAX);
        let misses =
            self.misses.get_mut(stretch as usize).filter(|_| self.recorded_order.visits(stretch));
        let most = misses.map(|misses| {
            *misses = misses.saturating_add(1);
            FIRST_MISS_PAGES << u32::from(*misses - 1).min(16)
        });
        self.colors.fault_within(fault, most.unwrap_or(u32::MAX), planner);
    }

    /// Streams the pending stops of the readers, the longest read first.
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
            // The frame was read ahead, but not early enough.
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
        // Frames in both the recording and the prediction are almost certain to be used.
        while planner.room() > 0
            && let Some(frame) = self.colors.guide().predicted().get(self.next_predicted)
        {
            if self.recorded_order.stop(*frame).is_some() {
                planner.fetch_used(*frame);
            }
            self.next_predicted += 1;
        }
        self.read(planner);
        if self.predict == Predict::Always || !self.is_trusted() {
            self.colors.background(planner);
        }
    }
}

/// Streams a set of frames unconditionally, then continues as another policy.
///
/// For sets that are trusted whole: the frames that a throwaway clone accessed while idle after
/// the freeze; or, before a [`Demand`](super::Demand) policy, existing record-and-replay (REAP,
/// Ustiugov et al., ASPLOS 2021).
#[derive(Debug)]
pub struct Streamed<P> {
    name: String,
    frames: Arc<[FrameIndex]>,
    next: usize,
    then: P,
}

impl<P: PrefetchPolicy> Streamed<P> {
    /// Streams `frames` in their order, then continues as `then`.
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
