//! The link from the parent to the clone in simulated time.

use super::CostModel;
use crate::addr::FrameIndex;
use std::collections::VecDeque;

/// Simulated time in nanoseconds since the clone was resumed. Saturates, because a trace may hold
/// any times.
pub(super) type Nanos = u64;

/// State of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Position {
    /// At the parent, and not requested.
    Absent,
    /// Requested, and not yet on the link.
    Queued,
    /// Present from this instant on.
    Arrives(Nanos),
}

/// Costs in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    pub(super) request_latency: Nanos,
    pub(super) page_latency: Nanos,
    pub(super) page: Nanos,
    pub(super) zero: Nanos,
}

impl Costs {
    pub(super) fn new(model: &CostModel) -> Self {
        let fault = nanos(model.fault_us);
        let request_latency = fault / 2;
        Self {
            request_latency,
            page_latency: fault - request_latency,
            page: nanos(model.page_us),
            zero: nanos(model.zero_us),
        }
    }
}

/// Converts a cost in microseconds, which is at most an hour.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn nanos(us: f64) -> Nanos {
    (us.clamp(0.0, 3.6e9) * 1000.0).round() as Nanos
}

/// The link, the queues in front of it, and the state of every frame.
#[derive(Debug)]
pub(super) struct Link {
    costs: Costs,
    message: usize,
    /// When the link becomes idle.
    idle_at: Nanos,
    /// Planned frames, each with the instant at which the parent learns of it.
    fetch: VecDeque<(Nanos, FrameIndex)>,
    stream: VecDeque<FrameIndex>,
    positions: Vec<Position>,
    /// Arrival times of frames, in sending order.
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

    /// Sets the state of a frame.
    pub(super) fn set(&mut self, frame: FrameIndex, position: Position) {
        if let Some(slot) = self.positions.get_mut(frame.as_usize()) {
            *slot = position;
        }
    }

    /// Queues frames that were planned with a fault; the parent learns of them at `known`.
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

    /// Sends queued frames until `now`. If the link runs out of work before that, returns the
    /// instant at which it became idle.
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

    /// Sends one page ahead of all others, at the first message boundary after `now`. Returns when
    /// it arrives.
    pub(super) fn send_now(&mut self, frame: FrameIndex, now: Nanos) -> Nanos {
        let start = self.idle_at.max(now);
        self.idle_at = start.saturating_add(self.costs.page);
        let at = self.idle_at.saturating_add(self.costs.page_latency);
        self.arrive(frame, at);
        at
    }

    /// Leaves the link idle until `now`.
    pub(super) fn idle_until(&mut self, now: Nanos) {
        self.idle_at = self.idle_at.max(now);
    }

    fn arrive(&mut self, frame: FrameIndex, at: Nanos) {
        self.set(frame, Position::Arrives(at));
        self.arrived.push((at, frame));
    }

    /// Sends the next message; the parent knows of its first page at `start`.
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
            self.arrive(frame, self.idle_at.saturating_add(self.costs.page_latency));
        }
    }

    /// Drops frames at the heads of the queues that were already sent because of a fault.
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
