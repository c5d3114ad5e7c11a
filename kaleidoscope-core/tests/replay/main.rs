//! Compares the replay with a second implementation, written from the documentation.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    clippy::wildcard_enum_match_arm,
    clippy::unwrap_used,
    clippy::panic,
    reason = "numbers are small, and the model should be readable"
)]

#[path = "../prefetch/maps.rs"]
mod maps;
mod naive;
#[path = "../prefetch/policies.rs"]
mod policies;

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::prefetch::{
    Access, Fault, LocalityOrder, Planner, PrefetchOutcome, PrefetchPolicy,
};
use kaleidoscope_core::replay::{CostModel, Replay, Touch, Trace, replay};
use kaleidoscope_mock::Rng;
use maps::{Recipe, map};
use policies::policies;
use proptest::prelude::*;
use std::sync::Arc;

/// A policy with random plans, seeded by what it has seen.
struct RandomPolicy {
    rng: Rng,
    /// Most frames that it tries to plan at a time.
    most: u64,
}

impl RandomPolicy {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let most = rng.below(20);
        Self { rng, most }
    }

    /// Makes later random numbers depend on an event.
    fn see(&mut self, what: u64) {
        self.rng = Rng::new(self.rng.next_u64() ^ what);
    }

    fn plan(&mut self, planner: &mut Planner<'_>) {
        let frames = u64::from(planner.locality().frames());
        for _ in 0..self.rng.below(self.most + 1) {
            let frame = FrameIndex(u32::try_from(self.rng.below(frames)).unwrap());
            match self.rng.below(8) {
                0..2 => planner.zero(frame),
                2..6 => planner.fetch_used(frame),
                _ => planner.fetch(frame),
            };
        }
    }
}

impl PrefetchPolicy for RandomPolicy {
    fn name(&self) -> &str {
        "dice"
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        self.see(u64::from(fault.frame.0) << 2 | u64::from(fault.in_flight));
        if self.rng.one_in(2) {
            planner.answer_with_zeros();
        }
        self.plan(planner);
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        self.see(u64::MAX);
        if !self.rng.one_in(3) {
            self.plan(planner);
        }
    }

    fn feedback(&mut self, frame: FrameIndex, outcome: PrefetchOutcome) {
        self.see(u64::from(frame.0) << 1 | u64::from(outcome == PrefetchOutcome::Used));
    }
}

fn guests() -> impl Strategy<Value = ColorMap> {
    let ram = prop::collection::vec((0..3_u8, 1..40_u8), 1..4);
    let free_percent = prop_oneof![Just(0), Just(100), 1..100_u8];
    (ram, 0..9_u8, free_percent, 1..20_u8, any::<u64>()).prop_map(
        |(ram, regions, free_percent, run, seed)| {
            map(&Recipe { ram, regions, free_percent, run, seed })
        },
    )
}

/// Touches: microseconds since the last one, frame, vCPU.
type Raw = Vec<(u8, u8, u8)>;

fn trace(map: &ColorMap, raw: &Raw) -> Trace {
    let mut at_us = 0;
    let touches = raw.iter().map(|&(pause, frame, vcpu)| {
        // Simultaneous touches, and long pauses.
        at_us += if pause < 60 { 0 } else { u64::from(pause - 60) };
        let frame = FrameIndex(u32::from(frame) % map.layout().frames());
        let access = if pause % 2 == 0 { Access::Read } else { Access::Write };
        Touch { at_us, frame, access, vcpu: u16::from(vcpu % 4) }
    });
    Trace::new(touches, map.layout())
}

/// Costs in nanoseconds. A page takes time; all other costs may be zero.
fn options() -> impl Strategy<Value = Replay> {
    let nanos = |most: u32| prop_oneof![1 => Just(0), 9 => 0..most];
    let counts = (0..20_u32, 0..40_u32, 0..30_usize);
    (nanos(300_000), 1..40_000_u32, nanos(60_000), counts, any::<bool>()).prop_map(
        |(fault, page, zero, (message_pages, stream_pages, budget), feedback)| {
            let us = |nanos: u32| f64::from(nanos) / 1000.0;
            let (fault_us, page_us, zero_us) = (us(fault), us(page), us(zero));
            let costs = CostModel { fault_us, page_us, zero_us, message_pages, stream_pages };
            Replay { budget, feedback, ..Replay::new(costs) }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_naive_replay_agrees(
        map in guests(), raw in prop::collection::vec(any::<(u8, u8, u8)>(), 0..60),
        options in options(), seeds: [u64; 4],
    ) {
        let (locality, trace) = (Arc::new(LocalityOrder::new(map.clone())), trace(&map, &raw));
        let pairs = policies(&locality).into_iter().zip(policies(&locality));
        let random = |seed| -> Box<dyn PrefetchPolicy> { Box::new(RandomPolicy::new(seed)) };
        let dice = seeds.map(random);
        let again = seeds.map(random);
        for (mut policy, mut same) in pairs.chain(dice.into_iter().zip(again)) {
            let real = replay(&trace, &locality, &mut *policy, &options);
            let naive = naive::replay(&trace, &map, &mut *same, &options);
            prop_assert_eq!(real, naive, "{} {:?}", policy.name(), trace);
        }
    }
}

#[test]
fn long_traces_agree_too() {
    let ram = vec![(0, 255), (3, 255), (1, 255), (2, 255)];
    for (seed, costs) in (0..).zip([CostModel::GBE, CostModel::GBE25, CostModel::LOCAL]) {
        let recipe = Recipe { ram: ram.clone(), regions: 40, free_percent: 30, run: 40, seed };
        let (map, mut rng) = (map(&recipe), Rng::new(seed));
        let raw: Vec<_> = (0..4000).map(|_| rng.next_u64().to_le_bytes()).collect();
        let mut at_us = 0;
        let touches = raw.iter().map(|bytes| {
            at_us += u64::from(bytes[0]);
            let frame = u32::from(u16::from_le_bytes([bytes[1], bytes[2]])) % map.layout().frames();
            let (frame, vcpu) = (FrameIndex(frame), u16::from(bytes[3] % 3));
            Touch { at_us, frame, access: Access::Unknown, vcpu }
        });
        let trace = Trace::new(touches, map.layout());
        assert!(trace.touches().len() > 900);
        let (locality, options) = (Arc::new(LocalityOrder::new(map.clone())), Replay::new(costs));
        for (mut policy, mut same) in policies(&locality).into_iter().zip(policies(&locality)) {
            let real = replay(&trace, &locality, &mut *policy, &options);
            assert_eq!(
                real,
                naive::replay(&trace, &map, &mut *same, &options),
                "{}",
                policy.name()
            );
        }
    }
}
