//! The replay as its documentation describes it, event by event, with plain lists.

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::color::{Color, ColorMap};
use kaleidoscope_core::prefetch::{
    Answer, Fault, LocalityOrder, Plan, PrefetchOutcome, PrefetchPolicy, Presence,
};
use kaleidoscope_core::replay::{Metrics, Replay, Sample, Touch, Trace};
use std::sync::Arc;

/// State of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FrameState {
    /// At the parent, and not requested.
    Parent,
    /// Requested.
    Asked,
    /// Sent; present in the clone from this time on.
    Sent(u64),
    /// Filled with zeros; present in the clone from this time on.
    Zeros(u64),
}

struct Frames(Vec<FrameState>);

impl Presence for Frames {
    fn is_absent(&self, frame: FrameIndex) -> bool {
        self.0[frame.as_usize()] == FrameState::Parent
    }
}

/// A vCPU with its touches, the next one first, each with its index in the trace.
struct Vcpu {
    number: u16,
    touches: Vec<(usize, Touch)>,
    /// Time of the next touch; `None` while the vCPU waits.
    ready: Option<u64>,
}

/// A fault whose page is not on the link yet.
struct Request {
    /// When the parent learns of it.
    known: u64,
    frame: FrameIndex,
    vcpu: usize,
    /// Index of the touch in the trace.
    touch: usize,
}

/// The outcome of a touch.
#[derive(Clone, Copy, Default)]
struct Record {
    began: u64,
    ended: Option<u64>,
    is_fault: bool,
    resident: u32,
}

struct World<'a> {
    map: &'a ColorMap,
    options: &'a Replay,
    policy: &'a mut dyn PrefetchPolicy,
    plan: Plan,
    batch: Plan,
    now: u64,
    link_free: u64,
    frames: Frames,
    vcpus: Vec<Vcpu>,
    requests: Vec<Request>,
    planned: Vec<(u64, FrameIndex)>,
    streamed: Vec<FrameIndex>,
    /// The last batch of the background was empty, and no fault has happened since.
    background_empty: bool,
    prefetched: Vec<FrameIndex>,
    /// Touched frames that were not free.
    needed: Vec<FrameIndex>,
    records: Vec<Record>,
    metrics: Metrics,
    /// Number of zero-filled frames that were touched.
    zeros: u32,
}

fn nanos(us: f64) -> u64 {
    (us * 1000.0).round() as u64
}

pub(crate) fn replay(
    trace: &Trace,
    map: &ColorMap,
    policy: &mut dyn PrefetchPolicy,
    options: &Replay,
) -> Metrics {
    let locality = Arc::new(LocalityOrder::new(map.clone()));
    let mut vcpus: Vec<Vcpu> = Vec::new();
    for (number, touch) in trace.touches().iter().enumerate() {
        let known = vcpus.iter().position(|vcpu| vcpu.number == touch.vcpu);
        let at = known.unwrap_or_else(|| {
            let ready = Some(touch.at_us * 1000);
            vcpus.push(Vcpu { number: touch.vcpu, touches: Vec::new(), ready });
            vcpus.len() - 1
        });
        vcpus[at].touches.push((number, *touch));
    }
    let mut world = World {
        map,
        options,
        policy,
        plan: Plan::new(Arc::clone(&locality), options.budget),
        batch: Plan::new(locality, options.costs.stream_pages as usize),
        now: 0,
        link_free: 0,
        frames: Frames(vec![FrameState::Parent; map.len()]),
        vcpus,
        requests: Vec::new(),
        planned: Vec::new(),
        streamed: Vec::new(),
        background_empty: false,
        prefetched: Vec::new(),
        needed: Vec::new(),
        records: Vec::new(),
        metrics: Metrics::default(),
        zeros: 0,
    };
    loop {
        match (world.next_touch(), world.next_link()) {
            (Some((at, _, vcpu)), link) if link.is_none_or(|link| at <= link) => {
                assert!(world.now <= at, "time goes back");
                world.now = at;
                world.touch(vcpu);
            }
            (_, Some(at)) => {
                world.now = at;
                world.link();
            }
            _ => break,
        }
    }
    assert!(world.vcpus.iter().all(|vcpu| vcpu.touches.is_empty()), "a vCPU waits for ever");
    world.finish()
}

impl World<'_> {
    fn is_free(&self, frame: FrameIndex) -> bool {
        matches!(self.map.frame(frame).unwrap().color, Color::Free | Color::Offline)
    }

    /// The next touch: its time, its index, and its vCPU.
    fn next_touch(&self) -> Option<(u64, usize, usize)> {
        let vcpus = self.vcpus.iter().enumerate();
        vcpus.filter_map(|(at, v)| Some((v.ready?, v.touches.first()?.0, at))).min()
    }

    /// Time of the link's next event.
    fn next_link(&self) -> Option<u64> {
        let touches_left = self.vcpus.iter().any(|vcpu| !vcpu.touches.is_empty());
        if !touches_left && self.requests.is_empty() {
            return None;
        }
        let requests = self.requests.iter().map(|r| r.known);
        let planned = self.planned.iter().map(|p| p.0);
        let streamed = self.streamed.iter().map(|_| 0);
        match requests.chain(planned).chain(streamed).min() {
            None if self.background_empty => None,
            known => Some(known.unwrap_or(0).max(self.link_free).max(self.now)),
        }
    }

    /// Handles an idle link: sends a message, or asks the background for a batch.
    fn link(&mut self) {
        if self.requests.is_empty() && self.planned.is_empty() && self.streamed.is_empty() {
            self.policy.background(&mut self.batch.begin(&self.frames, None));
            let (fetch, zero) = (self.batch.fetch().to_vec(), self.batch.zero().to_vec());
            self.background_empty = fetch.is_empty() && zero.is_empty();
            self.note_plan(&fetch, &zero);
            self.streamed = fetch;
            return;
        }
        let now = self.now;
        let mut message = Vec::new();
        if let Some(urgent) = self.requests.iter().find(|r| r.known <= now) {
            message.push(urgent.frame);
        } else {
            let planned = self.planned.iter().filter(|p| p.0 <= now).map(|p| p.1);
            let pages = self.options.costs.message_pages.max(1) as usize;
            message.extend(planned.chain(self.streamed.iter().copied()).take(pages));
        }
        self.link_free = now;
        let fault = nanos(self.options.costs.fault_us);
        for frame in message {
            self.link_free += nanos(self.options.costs.page_us);
            let arrival = self.link_free + (fault - fault / 2);
            self.frames.0[frame.as_usize()] = FrameState::Sent(arrival);
            self.planned.retain(|p| p.1 != frame);
            self.streamed.retain(|f| *f != frame);
            while let Some(at) = self.requests.iter().position(|r| r.frame == frame) {
                let request = self.requests.remove(at);
                self.go_on(request.vcpu, request.touch, arrival);
            }
        }
    }

    /// Ends a touch and schedules the vCPU's next one.
    fn go_on(&mut self, vcpu: usize, touch: usize, at: u64) {
        self.records[touch].ended = Some(at);
        let vcpu = &mut self.vcpus[vcpu];
        let (_, done) = vcpu.touches.remove(0);
        let next = vcpu.touches.first();
        vcpu.ready = next.map(|(_, next)| at + (next.at_us - done.at_us) * 1000);
    }

    fn touch(&mut self, vcpu: usize) {
        let now = self.now;
        let (_, Touch { frame, access, .. }) = self.vcpus[vcpu].touches[0];
        self.vcpus[vcpu].ready = None;
        let (is_free, was) = (self.is_free(frame), self.frames.0[frame.as_usize()]);
        let was_prefetched = self.prefetched.contains(&frame);
        if is_free {
            self.metrics.free_touched += 1;
        } else {
            self.needed.push(frame);
            self.metrics.used += u32::from(was_prefetched);
        }
        if was_prefetched && self.options.feedback {
            self.policy.feedback(frame, PrefetchOutcome::Used);
        }
        let touch = self.records.len();
        self.records.push(Record { began: now, ..Record::default() });
        match was {
            FrameState::Sent(at) | FrameState::Zeros(at) if at <= now => {
                self.metrics.covered += u32::from(!is_free);
                if matches!(was, FrameState::Zeros(_)) {
                    self.zeros += 1;
                    self.takes_memory(frame);
                }
                self.go_on(vcpu, touch, now);
            }
            _ => self.fault(
                vcpu,
                touch,
                Fault { frame, access, in_flight: was != FrameState::Parent },
            ),
        }
        self.records[touch].resident = self.metrics.transferred + self.zeros;
    }

    fn fault(&mut self, vcpu: usize, touch: usize, fault: Fault) {
        let now = self.now;
        self.records[touch].is_fault = true;
        self.background_empty = false;
        self.policy.fault(&fault, &mut self.plan.begin(&self.frames, Some(fault.frame)));
        let (fetch, zero) = (self.plan.fetch().to_vec(), self.plan.zero().to_vec());
        let known = now + nanos(self.options.costs.fault_us) / 2;
        let whereabouts = &mut self.frames.0[fault.frame.as_usize()];
        if let FrameState::Sent(at) = *whereabouts {
            self.metrics.late += 1;
            self.go_on(vcpu, touch, at);
        } else if !fault.in_flight && self.plan.answer() == Answer::Zero {
            let there = now + nanos(self.options.costs.zero_us);
            *whereabouts = FrameState::Zeros(there);
            self.metrics.zero_faults += 1;
            self.zeros += 1;
            self.takes_memory(fault.frame);
            self.go_on(vcpu, touch, there);
        } else {
            *whereabouts = FrameState::Asked;
            self.requests.push(Request { known, frame: fault.frame, vcpu, touch });
            if fault.in_flight {
                self.metrics.late += 1;
            } else {
                self.metrics.faults += 1;
                self.metrics.transferred += 1;
                self.takes_memory(fault.frame);
                self.metrics.free_transferred += u32::from(self.is_free(fault.frame));
            }
        }
        self.note_plan(&fetch, &zero);
        self.planned.extend(fetch.iter().map(|frame| (known, *frame)));
    }

    fn takes_memory(&mut self, frame: FrameIndex) {
        let color = self.map.frame(frame).unwrap().color;
        self.metrics.footprint[color as usize] += 1;
    }

    fn note_plan(&mut self, fetch: &[FrameIndex], zero: &[FrameIndex]) {
        for frame in zero {
            self.frames.0[frame.as_usize()] = FrameState::Zeros(self.now);
        }
        for frame in fetch {
            self.frames.0[frame.as_usize()] = FrameState::Asked;
            self.prefetched.push(*frame);
            self.metrics.prefetched += 1;
            self.metrics.transferred += 1;
            self.takes_memory(*frame);
            self.metrics.free_transferred += u32::from(self.is_free(*frame));
        }
    }

    fn finish(mut self) -> Metrics {
        let mut last = 0;
        let every = self.records.len().div_ceil(256).max(1);
        for (done, record) in (1..).zip(&self.records) {
            let ended = record.ended.unwrap();
            last = ended.max(last);
            if record.is_fault {
                let wait = (ended - record.began) as f64 / 1000.0;
                self.metrics.waits_us.push(wait);
                self.metrics.stall_us += wait;
            }
            if done % every == 0 || done == self.records.len() {
                let touched = u32::try_from(done).unwrap();
                let resident = record.resident;
                self.metrics.samples.push(Sample { at_us: last / 1000, touched, resident });
            }
        }
        self.metrics.waits_us.sort_by(f64::total_cmp);
        self.metrics.needed = u32::try_from(self.needed.len()).unwrap();
        let mut arrivals = Vec::new();
        for frame in &self.needed {
            match self.frames.0[frame.as_usize()] {
                FrameState::Sent(at) => arrivals.push(at),
                _ => panic!("{frame:?} was needed and never sent"),
            }
        }
        arrivals.sort_unstable();
        for (slot, percent) in self.metrics.working_set_us.iter_mut().zip([50, 90, 99]) {
            // The least number of frames that is at least this percentage.
            let enough = (1..=arrivals.len()).find(|n| n * 100 >= arrivals.len() * percent);
            *slot = enough.map_or(0, |n| arrivals[n - 1] / 1000);
        }
        self.metrics
    }
}
