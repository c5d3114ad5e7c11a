//! The prefetch scheduler: runs the policy, and queues the frames that it plans.

use super::super::options::{Background, EngineOptions, FreeFrames};
use super::background_fill::BackgroundFill;
use super::frame_states::Phase;
use super::state::CloneState;
use crate::addr::FrameIndex;
use crate::prefetch::{Answer, Fault, LocalityOrder, Plan, PrefetchOutcome, PrefetchPolicy};
use std::collections::VecDeque;
use std::sync::Arc;

/// Decides which frames to request next. Used by one thread at a time, under a lock.
pub(super) struct PrefetchScheduler {
    policy: Box<dyn PrefetchPolicy>,
    plan: Plan,
    /// Planned frames, the oldest first. A fault may have requested some of them since.
    queue: VecDeque<FrameIndex>,
    /// The policy plans nothing more until the next fault.
    idle: bool,
    /// Fills the clone when the policy plans nothing.
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
        let mut plan = Plan::new(Arc::clone(locality), options.budget);
        plan.allow_zeros(options.free_frames == FreeFrames::Zero);
        Self { policy, plan, queue: VecDeque::new(), idle: false, fill }
    }

    /// Runs the policy for a fault. Queues the frames that it plans to fetch, and adds those that
    /// it plans to zero to `zeros`.
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

    /// Tells the policy whether a prefetched frame was used.
    pub(super) fn feedback(&mut self, frame: FrameIndex, outcome: PrefetchOutcome) {
        self.policy.feedback(frame, outcome);
    }

    /// Queues the plan's frames to fetch, and adds its frames to zero to `zeros`. Drops the oldest
    /// queued frames beyond the queue's limit.
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

    /// Moves frames to requested and writes them to `batch`; returns their number. The caller then
    /// requests them. `may_fill` allows the background fill. Adds the frames that the policy plans
    /// to zero to `zeros`.
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
            // A policy may endlessly plan useless frames: frames that must not be zeros, or that
            // are planned already. A policy that has planned more frames than the guest has is
            // idle until the next fault.
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

    /// Drops all planned frames, because memory is short.
    pub(super) fn drop_plans(&mut self, clone: &CloneState) {
        for frame in self.queue.drain(..) {
            clone.frames.unplan(frame);
        }
    }

    /// Whether the background fill has brought every frame. Starts another pass if frames were
    /// dropped meanwhile.
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

    /// Time until a throttled fill may request more; `None` when the fill need not wait, or there
    /// is none.
    pub(super) fn next_fill_in(&self, clone: &CloneState) -> Option<std::time::Duration> {
        self.fill.as_ref()?.next_in(clone.clock.now())
    }
}
