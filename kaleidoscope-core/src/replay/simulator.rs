//! The simulator: touches, faults, a policy and a link in simulated time.

use super::link::{Link, Nanos, Position};
use super::{CostModel, Metrics, Sample, Trace};
use crate::addr::FrameIndex;
use crate::prefetch::{
    Answer, Fault, LocalityOrder, Plan, PrefetchOutcome, PrefetchPolicy, Presence,
};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

/// Default of the most frames of one plan: 1 MiB.
const DEFAULT_BUDGET: usize = 256;

/// Most samples of the clone over time.
const MAX_SAMPLES: usize = 256;

/// Options of a replay.
#[derive(Clone, Copy, Debug)]
pub struct Replay {
    /// Costs of faults and pages.
    pub costs: CostModel,
    /// Most frames that the answer to one fault fetches, and most that it fills with zeros, beside
    /// the faulting one.
    pub budget: usize,
    /// Whether the policy receives feedback on used frames, as from a clone that reads accessed
    /// bits.
    pub feedback: bool,
}

impl Replay {
    /// A replay with these costs, plans of at most 256 frames, and no feedback.
    #[must_use]
    pub fn new(costs: CostModel) -> Self {
        Self { costs, budget: DEFAULT_BUDGET, feedback: false }
    }
}

/// Replays a trace under a policy.
///
/// Each vCPU proceeds from touch to touch in the time that it took in the trace (to the first one,
/// in the time since the resume). A touch of an absent frame adds a wait, which does not delay the
/// other vCPUs. Simultaneous touches are processed in the trace's order. Free frames that the
/// policy fetches count as wasted, touched or not, because the guest does not need their bytes.
/// [`CostModel`] defines the link from the parent, and when the policy is asked for a background
/// batch. The replay ends with the trace's last touch.
///
/// With feedback, the policy hears of every touch of a prefetched frame, before the fault if the
/// frame is late. Zeros as the answer for a frame in flight are ignored: the parent's bytes are
/// used.
pub fn replay(
    trace: &Trace,
    locality: &Arc<LocalityOrder>,
    policy: &mut dyn PrefetchPolicy,
    options: &Replay,
) -> Metrics {
    let mut clone = Clone::new(locality, options);
    let mut vcpus = VcpuQueue::new(trace);
    let every = trace.touches().len().div_ceil(MAX_SAMPLES).max(1);
    let mut done = 0usize;
    while let Some((now, lane, frame, access)) = vcpus.next(trace) {
        let fault = Fault { frame, access, in_flight: false };
        let resumed = clone.touch(now, fault, policy);
        vcpus.resume(trace, lane, resumed);
        done += 1;
        clone.resumed = clone.resumed.max(resumed);
        if done.is_multiple_of(every) || done == trace.touches().len() {
            clone.sample();
        }
    }
    clone.finish()
}

/// The vCPUs, each with its pending touches.
struct VcpuQueue {
    /// Touches of each lane as indices into the trace, the next one last.
    ahead: Vec<Vec<usize>>,
    /// The time of each lane's next touch, the earliest first.
    queue: BinaryHeap<Reverse<(Nanos, usize, usize)>>,
}

impl VcpuQueue {
    fn new(trace: &Trace) -> Self {
        let mut numbers = HashMap::new();
        let mut ahead: Vec<Vec<usize>> = Vec::new();
        for (place, touch) in trace.touches().iter().enumerate().rev() {
            let lane = *numbers.entry(touch.vcpu).or_insert_with(|| {
                ahead.push(Vec::new());
                ahead.len() - 1
            });
            if let Some(lane) = ahead.get_mut(lane) {
                lane.push(place);
            }
        }
        let mut vcpus = Self { ahead, queue: BinaryHeap::new() };
        for lane in 0..vcpus.ahead.len() {
            vcpus.enqueue(trace, lane, 0, 0);
        }
        vcpus
    }

    /// The next touch: time, lane, frame and access.
    fn next(
        &mut self,
        trace: &Trace,
    ) -> Option<(Nanos, usize, FrameIndex, crate::prefetch::Access)> {
        let Reverse((now, place, lane)) = self.queue.pop()?;
        let touch = trace.touches().get(place)?;
        Some((now, lane, touch.frame, touch.access))
    }

    /// Continues a lane at `now`, after its current touch.
    fn resume(&mut self, trace: &Trace, lane: usize, now: Nanos) {
        let done = self.ahead.get_mut(lane).and_then(Vec::pop);
        let done_us = done.and_then(|place| trace.touches().get(place)).map_or(0, |t| t.at_us);
        self.enqueue(trace, lane, now, done_us);
    }

    fn enqueue(&mut self, trace: &Trace, lane: usize, now: Nanos, since_us: u64) {
        let next = self.ahead.get(lane).and_then(|l| l.last());
        if let Some((&place, touch)) = next.and_then(|p| Some((p, trace.touches().get(*p)?))) {
            let think = touch.at_us.saturating_sub(since_us).saturating_mul(1000);
            self.queue.push(Reverse((now.saturating_add(think), place, lane)));
        }
    }
}

/// Whether a frame was prefetched, and whether it was touched.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct History {
    prefetched: bool,
    touched: bool,
}

/// The simulated clone.
struct Clone<'a> {
    locality: &'a LocalityOrder,
    options: &'a Replay,
    link: Link,
    plan: Plan,
    history: Vec<History>,
    metrics: Metrics,
    touched: u32,
    zero_touched: u32,
    /// When the last vCPU continues after its touch.
    resumed: Nanos,
    /// The background has nothing to stream until the next fault.
    background_idle: bool,
}

/// The frames that are neither present nor requested.
struct Absent<'a>(&'a [Position]);

impl Presence for Absent<'_> {
    fn is_absent(&self, frame: FrameIndex) -> bool {
        self.0.get(frame.as_usize()) == Some(&Position::Absent)
    }
}

impl<'a> Clone<'a> {
    fn new(locality: &'a Arc<LocalityOrder>, options: &'a Replay) -> Self {
        let frames = locality.frames();
        let budget = options.budget.max(options.costs.stream_pages as usize);
        Self {
            locality,
            options,
            link: Link::new(&options.costs, frames),
            plan: Plan::new(Arc::clone(locality), budget),
            history: vec![History::default(); frames as usize],
            metrics: Metrics::default(),
            touched: 0,
            zero_touched: 0,
            resumed: 0,
            background_idle: false,
        }
    }

    /// Processes a touch at `now`. Returns when the vCPU continues.
    fn touch(&mut self, now: Nanos, mut fault: Fault, policy: &mut dyn PrefetchPolicy) -> Nanos {
        self.advance(now, policy);
        let frame = fault.frame;
        let is_free = self.locality.is_free(frame);
        self.touched += 1;
        if is_free {
            self.metrics.free_touched += 1;
        } else {
            self.metrics.needed += 1;
        }
        let was_prefetched = self.note_touch(frame);
        if was_prefetched && !is_free {
            self.metrics.used += 1;
        }
        if was_prefetched && self.options.feedback {
            policy.feedback(frame, PrefetchOutcome::Used);
        }
        let position = self.link.position(frame);
        if matches!(position, Position::Arrives(at) if at <= now) {
            if !is_free {
                self.metrics.covered += 1;
            } else if !was_prefetched {
                self.zero_touched += 1;
            }
            return now;
        }
        fault.in_flight = position != Position::Absent;
        let resumed = self.answer(now, &fault, policy);
        let wait = us(resumed.saturating_sub(now));
        self.metrics.waits_us.push(wait);
        self.metrics.stall_us += wait;
        self.background_idle = false;
        resumed
    }

    /// Lets the policy answer a fault and carries the answer out. Returns when the frame arrives.
    fn answer(&mut self, now: Nanos, fault: &Fault, policy: &mut dyn PrefetchPolicy) -> Nanos {
        let presence = Absent(self.link.positions());
        let mut planner = self.plan.begin(&presence, Some(fault.frame));
        planner.limit(self.options.budget);
        policy.fault(fault, &mut planner);
        let answer = if fault.in_flight { Answer::Fetch } else { self.plan.answer() };
        let costs = self.link.costs();
        let known = now.saturating_add(costs.request_latency);
        let resumed = match answer {
            Answer::Zero => {
                self.metrics.zero_faults += 1;
                self.zero_touched += 1;
                let resumed = now.saturating_add(costs.zero);
                self.link.set(fault.frame, Position::Arrives(resumed));
                resumed
            }
            Answer::Fetch => {
                self.link.advance(known);
                let resumed = match self.link.position(fault.frame) {
                    Position::Arrives(at) => at,
                    Position::Absent | Position::Queued => self.link.send_now(fault.frame, known),
                };
                if fault.in_flight {
                    self.metrics.late += 1;
                } else {
                    self.metrics.faults += 1;
                    self.count_transfer(fault.frame);
                }
                resumed
            }
        };
        self.note_plan(now);
        self.link.plan(self.plan.fetch(), known);
        resumed
    }

    /// Records the frames of the plan beside the faulting one. Frames filled with zeros are present
    /// at once.
    fn note_plan(&mut self, now: Nanos) {
        for frame in self.plan.zero() {
            self.link.set(*frame, Position::Arrives(now));
        }
        for frame in self.plan.fetch() {
            self.metrics.prefetched += 1;
            self.metrics.transferred += 1;
            self.metrics.free_transferred += u32::from(self.locality.is_free(*frame));
            if let Some(history) = self.history.get_mut(frame.as_usize()) {
                history.prefetched = true;
            }
        }
    }

    fn count_transfer(&mut self, frame: FrameIndex) {
        self.metrics.transferred += 1;
        self.metrics.free_transferred += u32::from(self.locality.is_free(frame));
    }

    /// Runs the link until `now`, and gives it background work whenever it idles.
    fn advance(&mut self, now: Nanos, policy: &mut dyn PrefetchPolicy) {
        while let Some(idle_since) = self.link.advance(now) {
            if self.background_idle {
                self.link.idle_until(now);
                return;
            }
            let presence = Absent(self.link.positions());
            let mut planner = self.plan.begin(&presence, None);
            planner.limit(self.options.costs.stream_pages as usize);
            policy.background(&mut planner);
            self.background_idle = self.plan.fetch().is_empty() && self.plan.zero().is_empty();
            self.note_plan(idle_since);
            self.link.stream(self.plan.fetch());
        }
    }

    /// Records a touch. Returns whether the frame was prefetched.
    fn note_touch(&mut self, frame: FrameIndex) -> bool {
        let history = self.history.get_mut(frame.as_usize());
        history.is_some_and(|history| {
            history.touched = true;
            history.prefetched
        })
    }

    fn sample(&mut self) {
        self.metrics.samples.push(Sample {
            at_us: self.resumed / 1000,
            touched: self.touched,
            resident: self.metrics.transferred + self.zero_touched,
        });
    }

    /// Counts the frames that take memory, by color.
    fn count_footprint(&mut self) {
        for (history, color) in self.history.iter().zip(self.locality.map().colors()) {
            let is_resident = history.prefetched || history.touched;
            if is_resident && let Some(count) = self.metrics.footprint.get_mut(*color as usize) {
                *count += 1;
            }
        }
    }

    fn finish(mut self) -> Metrics {
        self.metrics.waits_us.sort_by(f64::total_cmp);
        self.count_footprint();
        let mut arrivals: Vec<Nanos> = self
            .link
            .arrived
            .iter()
            .filter(|(_, frame)| {
                let touched = self.history.get(frame.as_usize()).is_some_and(|h| h.touched);
                touched && !self.locality.is_free(*frame)
            })
            .map(|(at, _)| *at)
            .collect();
        arrivals.sort_unstable();
        self.metrics.working_set_us = [50, 90, 99].map(|percent| {
            let at = (arrivals.len() * percent).div_ceil(100).saturating_sub(1);
            arrivals.get(at).map_or(0, |at| at / 1000)
        });
        self.metrics
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a replay are below 2^53")]
fn us(nanos: Nanos) -> f64 {
    nanos as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::color::{Color, ColorMap, Frame};
    use crate::memory::MemoryLayout;
    use crate::prefetch::{Access, Blind, Demand, Oracle, Paper};
    use crate::replay::Touch;

    const FRAMES: u32 = 2048;

    /// A guest in which every fifth frame is free.
    fn locality() -> Arc<LocalityOrder> {
        let layout = MemoryLayout::contiguous(u64::from(FRAMES) * 4096).unwrap();
        let color = |n: u32| if n.is_multiple_of(5) { Color::Free } else { Color::Anonymous };
        let frames = (0..FRAMES).map(|n| Frame { color: color(n), ..Frame::default() });
        Arc::new(LocalityOrder::new(
            ColorMap::new(layout, Default::default(), frames, Vec::new()).unwrap(),
        ))
    }

    /// Every third frame, from two vCPUs.
    fn trace(touches: u32) -> Trace {
        let touch = |n: u32| Touch {
            at_us: u64::from(n) * 70,
            frame: FrameIndex(n * 3),
            access: Access::Read,
            vcpu: u16::from(n.is_multiple_of(7)),
        };
        let layout = MemoryLayout::contiguous(u64::from(FRAMES) * 4096).unwrap();
        Trace::new((0..touches).map(touch), &layout)
    }

    #[test]
    fn samples_are_few_in_order_and_agree_with_the_end() {
        let locality = locality();
        for touches in [1, 255, 256, 257, 511, 600] {
            let trace = trace(touches);
            let policies: [Box<dyn PrefetchPolicy>; 4] = [
                Box::new(Demand),
                Box::new(Blind::aligned(16)),
                Box::new(Paper::new(Arc::clone(&locality))),
                Box::new(Oracle::new(trace.touches().iter().map(|t| t.frame))),
            ];
            for mut policy in policies {
                let options = Replay::new(CostModel::GBE);
                let metrics = replay(&trace, &locality, policy.as_mut(), &options);
                let samples = &metrics.samples;
                assert!(samples.len() <= MAX_SAMPLES + 1, "{} of {touches}", samples.len());
                assert!(samples.is_sorted_by_key(|s| (s.at_us, s.touched, s.resident)));
                let last = samples.last().unwrap();
                assert_eq!(last.touched, touches);
                assert_eq!(last.resident, metrics.resident(), "{}", policy.name());
                assert_eq!(metrics.needed + metrics.free_touched, touches);
                assert_eq!(metrics.footprint[Color::Slab as usize], 0);
            }
        }
    }

    #[test]
    fn a_trace_without_touches_measures_nothing() {
        let options = Replay::new(CostModel::GBE);
        let metrics = replay(&Trace::default(), &locality(), &mut Demand, &options);
        assert_eq!(metrics, Metrics::default());
        assert_eq!((metrics.coverage(), metrics.accuracy(), metrics.wait_us(0.5)), (1.0, 1.0, 0.0));
    }
}
