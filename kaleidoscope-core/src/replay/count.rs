//! A replay without a clock, in which every planned page arrives at once. For tuning, which needs
//! only the numbers of faults and pages.

use super::{Touch, Trace};
use crate::addr::FrameIndex;
use crate::prefetch::{Access, Answer, Fault, LocalityOrder, Plan, PrefetchPolicy, Presence};
use std::ops::AddAssign;
use std::sync::Arc;

/// Results of a policy on a trace, if pages arrive at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Frames that the clone touched and that were not free.
    pub needed: u32,
    /// Touches that needed a request to the parent.
    pub faults: u32,
    /// Frames fetched before a fault on them.
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

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.needed += other.needed;
        self.faults += other.faults;
        self.prefetched += other.prefetched;
        self.used += other.used;
    }
}

/// State of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Absent,
    Prefetched,
    Present,
}

/// State of every frame, with an undo log.
#[derive(Debug)]
struct States {
    of: Vec<State>,
    /// Changes since the start: frames, and their previous states.
    changes: Vec<(FrameIndex, State)>,
}

impl States {
    fn set(&mut self, frame: FrameIndex, state: State) {
        if let Some(slot) = self.of.get_mut(frame.as_usize()) {
            self.changes.push((frame, *slot));
            *slot = state;
        }
    }

    fn evict(&mut self) {
        while let Some((frame, state)) = self.changes.pop() {
            if let Some(slot) = self.of.get_mut(frame.as_usize()) {
                *slot = state;
            }
        }
    }

    fn take_plan(&mut self, plan: &Plan, counts: &mut Counts) {
        for frame in plan.zero() {
            self.set(*frame, State::Present);
        }
        for frame in plan.fetch() {
            counts.prefetched += 1;
            self.set(*frame, State::Prefetched);
        }
    }
}

impl Presence for States {
    fn is_absent(&self, frame: FrameIndex) -> bool {
        self.of.get(frame.as_usize()) == Some(&State::Absent)
    }
}

/// Counts faults and wasted pages of one guest's traces, reusing its tables.
#[derive(Debug)]
pub struct Counter {
    locality: Arc<LocalityOrder>,
    plan: Plan,
    states: States,
}

impl Counter {
    /// A counter for a guest, with plans of at most `budget` frames.
    #[must_use]
    pub fn new(locality: Arc<LocalityOrder>, budget: usize) -> Self {
        let of = vec![State::Absent; locality.frames() as usize];
        let states = States { of, changes: Vec::new() };
        Self { plan: Plan::new(Arc::clone(&locality), budget), locality, states }
    }

    /// Replays a trace. The background runs to its end before the first touch.
    pub fn count(&mut self, trace: &Trace, policy: &mut dyn PrefetchPolicy) -> Counts {
        let mut counts = self.start(policy);
        counts += self.resume(trace.touches(), policy);
        counts
    }

    /// Runs the background to its end. Later clones start with the frames that it fetches.
    pub fn start(&mut self, policy: &mut dyn PrefetchPolicy) -> Counts {
        self.states.of.fill(State::Absent);
        let mut counts = Counts::default();
        loop {
            policy.background(&mut self.plan.begin(&self.states, None));
            if self.plan.fetch().is_empty() && self.plan.zero().is_empty() {
                break;
            }
            self.states.take_plan(&self.plan, &mut counts);
        }
        self.states.changes.clear();
        counts
    }

    /// Replays touches of a clone that starts with the frames that the last
    /// [start](Self::start) fetched. Those are not counted again.
    pub fn resume(&mut self, touches: &[Touch], policy: &mut dyn PrefetchPolicy) -> Counts {
        self.states.evict();
        let mut counts = Counts::default();
        for touch in touches {
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
        let is_free = self.locality.is_free(frame);
        counts.needed += u32::from(!is_free);
        let Some(state) = self.states.of.get(frame.as_usize()).copied() else { return };
        match state {
            State::Present => {}
            State::Prefetched => counts.used += u32::from(!is_free),
            State::Absent => {
                let fault = Fault { frame, access, in_flight: false };
                policy.fault(&fault, &mut self.plan.begin(&self.states, Some(frame)));
                counts.faults += u32::from(self.plan.answer() == Answer::Fetch);
                self.states.take_plan(&self.plan, counts);
            }
        }
        self.states.set(frame, State::Present);
    }
}
