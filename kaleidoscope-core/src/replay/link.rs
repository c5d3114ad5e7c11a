//! The way from the parent to the clone in simulated time.

use super::CostModel;
use crate::addr::FrameIndex;
use std::collections::VecDeque;

/// Simulated time in nanoseconds since the clone was resumed. It stands still at its end: a trace
/// may hold any times.
pub(super) type Nanos = u64;

/// Where a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Position {
    /// With the parent, and nobody has asked for it.
    Absent,
    /// Asked for, and not yet on the link.
    Queued,
    /// There, from this instant on.
    Arrives(Nanos),
}

/// Costs in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    pub(super) up: Nanos,
    pub(super) down: Nanos,
    pub(super) page: Nanos,
    pub(super) zero: Nanos,
}

impl Costs {
    pub(super) fn new(model: &CostModel) -> Self {
        let fault = nanos(model.fault_us);
        let up = fault / 2;
        Self { up, down: fault - up, page: nanos(model.page_us), zero: nanos(model.zero_us) }
    }
}

/// A cost in microseconds, none of which exceeds an hour.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn nanos(us: f64) -> Nanos {
    (us.clamp(0.0, 3.6e9) * 1000.0).round() as Nanos
}

/// The link, what waits for it, and where every frame is.
#[derive(Debug)]
pub(super) struct Link {
    costs: Costs,
    message: usize,
    /// When the link is idle again.
    idle_at: Nanos,
    /// Planned frames, each with the instant before which the parent does not know of it.
    fetch: VecDeque<(Nanos, FrameIndex)>,
    stream: VecDeque<FrameIndex>,
    positions: Vec<Position>,
    /// Needed frames' arrivals are recorded here.
    pub(super) arrived: Vec<(Nanos, FrameIndex)>,
}

impl Link {
    pub(super) fn new(model: &CostModel, frames: u32) -> Self {
        Self {
            costs: Costs::new(model),
            message: model.message_pages.max(1) as usize,
            idle_at: 0,
            fetch: VecDeque::new(),
            stream: VecDeque::new(),
            positions: vec![Position::Absent; frames as usize],
            arrived: Vec::new(),
        }
    }

    pub(super) fn costs(&self) -> Costs {
        self.costs
    }

    pub(super) fn positions(&self) -> &[Position] {
        &self.positions
    }

    pub(super) fn position(&self, frame: FrameIndex) -> Position {
        self.positions.get(frame.as_usize()).copied().unwrap_or(Position::Absent)
    }

    /// Says where a frame is.
    pub(super) fn set(&mut self, frame: FrameIndex, position: Position) {
        if let Some(slot) = self.positions.get_mut(frame.as_usize()) {
            *slot = position;
        }
    }

    /// Queues frames that were planned with a fault, of which the parent knows from `known` on.
    pub(super) fn plan(&mut self, frames: &[FrameIndex], known: Nanos) {
        for frame in frames {
            self.set(*frame, Position::Queued);
            self.fetch.push_back((known, *frame));
        }
    }

    /// Queues a batch of the background.
    pub(super) fn stream(&mut self, frames: &[FrameIndex]) {
        for frame in frames {
            self.set(*frame, Position::Queued);
            self.stream.push_back(*frame);
        }
    }

    /// Sends what waits, until `now`; returns whether the link then idles for want of work, with
    /// the instant since when.
    pub(super) fn advance(&mut self, now: Nanos) -> Option<Nanos> {
        while self.idle_at < now {
            self.drop_overtaken();
            let start = match (self.fetch.front(), self.stream.is_empty()) {
                (Some(&(known, _)), _) if known <= self.idle_at => self.idle_at,
                (_, false) => self.idle_at,
                (Some(&(known, _)), true) => known,
                (None, true) => return Some(self.idle_at),
            };
            if start >= now {
                return None;
            }
            self.idle_at = start;
            self.send_message(start);
        }
        None
    }

    /// Sends one page ahead of all others, at the next message's border after `now`; returns when
    /// it arrives.
    pub(super) fn send_now(&mut self, frame: FrameIndex, now: Nanos) -> Nanos {
        let start = self.idle_at.max(now);
        self.idle_at = start.saturating_add(self.costs.page);
        let at = self.idle_at.saturating_add(self.costs.down);
        self.arrive(frame, at);
        at
    }

    /// The link has nothing to do until `now`.
    pub(super) fn rest(&mut self, now: Nanos) {
        self.idle_at = self.idle_at.max(now);
    }

    fn arrive(&mut self, frame: FrameIndex, at: Nanos) {
        self.set(frame, Position::Arrives(at));
        self.arrived.push((at, frame));
    }

    /// Sends the next message, whose first page the parent knows of at `start`.
    fn send_message(&mut self, start: Nanos) {
        for _ in 0..self.message {
            self.drop_overtaken();
            let frame = match self.fetch.front() {
                Some(&(known, frame)) if known <= start => {
                    self.fetch.pop_front();
                    Some(frame)
                }
                _ => self.stream.pop_front(),
            };
            let Some(frame) = frame else { break };
            self.idle_at = self.idle_at.saturating_add(self.costs.page);
            self.arrive(frame, self.idle_at.saturating_add(self.costs.down));
        }
    }

    /// Forgets frames at the heads of the queues that a fault has sent ahead.
    fn drop_overtaken(&mut self) {
        while let Some((_, frame)) = self.fetch.front()
            && self.position(*frame) != Position::Queued
        {
            self.fetch.pop_front();
        }
        while let Some(frame) = self.stream.front()
            && self.position(*frame) != Position::Queued
        {
            self.stream.pop_front();
        }
    }
}
