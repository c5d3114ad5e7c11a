//! Policy, plan and queue: what to ask for next.

use super::super::options::{Background, EngineOptions};
use super::background_fill::BackgroundFill;
use super::frame_states::Phase;
use super::state::CloneState;
use crate::addr::FrameIndex;
use crate::prefetch::{Answer, Fault, LocalityOrder, Plan, PrefetchOutcome, PrefetchPolicy};
use std::collections::VecDeque;
use std::sync::Arc;

/// What decides. One thread at a time thinks.
pub(super) struct PrefetchScheduler {
    policy: Box<dyn PrefetchPolicy>,
    plan: Plan,
    /// Planned frames that the source does not know of, the oldest first. Some may be on their way
    /// meanwhile.
    queue: VecDeque<FrameIndex>,
    /// The policy has nothing to stream until the next fault.
    idle: bool,
    /// Fills the clone when there is nothing better to do.
    fill: Option<BackgroundFill>,
}

impl PrefetchScheduler {
    pub(super) fn new(
        policy: Box<dyn PrefetchPolicy>,
        locality: &Arc<LocalityOrder>,
        options: &EngineOptions,
    ) -> Self {
        let fill = match options.background {
            Background::Off => None,
            Background::Throttled { pages_per_second } => {
                Some(BackgroundFill::new(Some(pages_per_second)))
            }
            Background::Full => Some(BackgroundFill::new(None)),
        };
        Self {
            policy,
            plan: Plan::new(Arc::clone(locality), options.budget),
            queue: VecDeque::new(),
            idle: false,
            fill,
        }
    }

    /// Asks the policy about a fault. What it wants fetched is queued; what it wants filled with
    /// zeros is added to `zeros`.
    pub(super) fn fault(
        &mut self,
        fault: &Fault,
        clone: &CloneState,
        zeros: &mut Vec<FrameIndex>,
    ) -> Answer {
        self.idle = false;
        let mut planner = self.plan.begin(&clone.frames, Some(fault.frame));
        self.policy.fault(fault, &mut planner);
        self.queue_plan(clone, zeros);
        self.plan.answer()
    }

    /// The policy learns what became of a prefetched frame.
    pub(super) fn feedback(&mut self, frame: FrameIndex, outcome: PrefetchOutcome) {
        self.policy.feedback(frame, outcome);
    }

    /// Queues the plan.
    fn queue_plan(&mut self, clone: &CloneState, zeros: &mut Vec<FrameIndex>) {
        for frame in self.plan.fetch() {
            if clone.frames.plan(*frame) {
                self.queue.push_back(*frame);
            }
        }
        while self.queue.len() > clone.options.queue
            && let Some(oldest) = self.queue.pop_front()
        {
            clone.frames.unplan(oldest);
        }
        zeros.extend(self.plan.zero().iter().filter(|frame| clone.is_free(**frame)));
    }

    /// Fills `batch` with frames to ask for, which are then on their way; returns how many. Only
    /// the streaming thread fills the clone (`may_fill`). What the policy wants filled with
    /// zeros is added to `zeros`.
    pub(super) fn next(
        &mut self,
        batch: &mut [FrameIndex],
        may_fill: bool,
        clone: &CloneState,
        zeros: &mut Vec<FrameIndex>,
    ) -> usize {
        let mut n = self.dequeue(batch, clone);
        let (mut fruitless, most) = (0, clone.locality.frames() as usize);
        while n < batch.len() && !self.idle {
            let before = (n, zeros.len());
            let mut planner = self.plan.begin(&clone.frames, None);
            planner.limit(batch.len() - n);
            self.policy.background(&mut planner);
            self.idle = self.plan.fetch().is_empty() && self.plan.zero().is_empty();
            self.queue_plan(clone, zeros);
            n += self.dequeue(batch.get_mut(n..).unwrap_or_default(), clone);
            // A policy may plan for ever what is of no use: frames that are not to be zeros, or
            // that are to be already. Who has planned more than there are frames has
            // nothing to say until the next fault.
            fruitless = if before == (n, zeros.len()) { fruitless + 1 } else { 0 };
            self.idle |= fruitless > most || zeros.len() > most;
        }
        if may_fill
            && n < batch.len()
            && let Some(fill) = &mut self.fill
        {
            n += fill.next(batch.get_mut(n..).unwrap_or_default(), clone);
        }
        n
    }

    fn dequeue(&mut self, batch: &mut [FrameIndex], clone: &CloneState) -> usize {
        let mut n = 0;
        while let Some(slot) = batch.get_mut(n)
            && let Some(frame) = self.queue.pop_front()
        {
            if clone.frames.request(frame) {
                *slot = frame;
                n += 1;
            }
        }
        n
    }

    /// Forgets everything that is planned: memory is short.
    pub(super) fn drop_plans(&mut self, clone: &CloneState) {
        for frame in self.queue.drain(..) {
            clone.frames.unplan(frame);
        }
    }

    /// Whether filling has seen every frame. A frame that was dropped since is filled in another
    /// pass.
    pub(super) fn has_filled(&mut self, clone: &CloneState) -> bool {
        let Some(fill) = &mut self.fill else { return false };
        if !fill.is_done() || !self.queue.is_empty() {
            return false;
        }
        let frames = (0..clone.locality.frames()).map(FrameIndex);
        let mut missing = frames.filter(|frame| match clone.frames.phase(*frame) {
            Phase::Absent | Phase::Queued => !clone.is_free(*frame),
            Phase::Requested | Phase::Installing | Phase::Staged => true,
            Phase::Present
            | Phase::Mapped
            | Phase::Removed
            | Phase::Refilled
            | Phase::Unavailable => false,
        });
        let is_filled = missing.next().is_none();
        if !is_filled {
            fill.restart();
        }
        is_filled
    }

    /// How long filling waits before it may ask for more; `None` when it waits for nothing, or
    /// there is none.
    pub(super) fn next_fill_in(&self, clone: &CloneState) -> Option<std::time::Duration> {
        self.fill.as_ref()?.next_in(clone.clock.now())
    }
}
