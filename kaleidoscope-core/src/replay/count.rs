//! A replay without a clock: every planned page is there at once. For tuning, which asks only how often and how much.

use super::Trace;
use crate::addr::FrameIndex;
use crate::prefetch::{Access, Answer, Atlas, Fault, Plan, PrefetchPolicy, Presence};
use std::sync::Arc;

/// What a policy did on a trace, when pages arrive at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Frames that the clone touched whose bytes mattered.
    pub needed: u32,
    /// Touches that had to ask the parent.
    pub faults: u32,
    /// Frames fetched before they were asked for.
    pub prefetched: u32,
    /// Prefetched frames that were needed.
    pub used: u32,
}

impl Counts {
    /// Prefetched frames that were not needed.
    #[must_use]
    pub fn wasted(&self) -> u32 {
        self.prefetched.saturating_sub(self.used)
    }
}

/// Where a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Prefetched,
    Present,
}

struct Absent<'a>(&'a [State]);

impl Presence for Absent<'_> {
    fn is_absent(&self, frame: FrameIndex) -> bool {
        self.0.get(frame.as_usize()) == Some(&State::Absent)
    }
}

/// Counts faults and wasted pages of one guest's traces, reusing its tables.
#[derive(Debug)]
pub struct Counter {
    atlas: Arc<Atlas>,
    plan: Plan,
    states: Vec<State>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Absent => "absent",
            Self::Prefetched => "prefetched",
            Self::Present => "present",
        })
    }
}

impl Counter {
    /// A counter for a guest, with plans of at most `budget` frames.
    #[must_use]
    pub fn new(atlas: Arc<Atlas>, budget: usize) -> Self {
        let states = vec![State::Absent; atlas.frames() as usize];
        Self { plan: Plan::new(Arc::clone(&atlas), budget), atlas, states }
    }

    /// Replays a trace. The background runs to its end before the first touch.
    pub fn count(&mut self, trace: &Trace, policy: &mut dyn PrefetchPolicy) -> Counts {
        self.states.fill(State::Absent);
        let mut counts = Counts::default();
        loop {
            let presence = Absent(&self.states);
            policy.background(&mut self.plan.begin(&presence, None));
            if self.plan.fetch().is_empty() && self.plan.zero().is_empty() {
                break;
            }
            self.take_plan(&mut counts);
        }
        for touch in trace.touches() {
            self.touch(touch.frame, touch.access, policy, &mut counts);
        }
        counts
    }

    fn touch(
        &mut self,
        frame: FrameIndex,
        access: Access,
        policy: &mut dyn PrefetchPolicy,
        counts: &mut Counts,
    ) {
        let is_free = self.atlas.is_free(frame);
        counts.needed += u32::from(!is_free);
        let Some(state) = self.states.get(frame.as_usize()).copied() else { return };
        match state {
            State::Present => {}
            State::Prefetched => counts.used += u32::from(!is_free),
            State::Absent => {
                let presence = Absent(&self.states);
                let fault = Fault { frame, access, in_flight: false };
                policy.fault(&fault, &mut self.plan.begin(&presence, Some(frame)));
                counts.faults += u32::from(self.plan.answer() == Answer::Fetch);
                self.take_plan(counts);
            }
        }
        self.set(frame, State::Present);
    }

    fn take_plan(&mut self, counts: &mut Counts) {
        for frame in self.plan.zero() {
            if let Some(slot) = self.states.get_mut(frame.as_usize()) {
                *slot = State::Present;
            }
        }
        for frame in self.plan.fetch() {
            counts.prefetched += 1;
            if let Some(slot) = self.states.get_mut(frame.as_usize()) {
                *slot = State::Prefetched;
            }
        }
    }

    fn set(&mut self, frame: FrameIndex, state: State) {
        if let Some(slot) = self.states.get_mut(frame.as_usize()) {
            *slot = state;
        }
    }
}
