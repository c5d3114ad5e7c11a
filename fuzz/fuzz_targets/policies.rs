//! Any faults on any small guest: plans of every policy hold what plans must hold, and a replay ends with counts that add up.
#![no_main]

#[path = "../../kaleidoscope-core/tests/prefetch/maps.rs"]
mod maps;
#[path = "../../kaleidoscope-core/tests/prefetch/plans.rs"]
mod plans;
#[path = "../../kaleidoscope-core/tests/prefetch/policies.rs"]
mod policies;

use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::replay::{CostModel, Replay, Touch, Trace, replay};
use kaleidoscope_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use maps::{Recipe, map};
use plans::{Step, run, step};
use policies::policies;
use std::sync::Arc;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let ram = (0..1 + input.u8() % 4).map(|_| (input.u8(), input.u8())).collect();
    let (regions, free_percent, run_length) = (input.u8(), input.u8(), input.u8());
    let recipe = Recipe { ram, regions, free_percent, run: run_length, seed: input.u64() };
    let budget = usize::from(input.u16() % 300);
    let costs = CostModel {
        fault_us: f64::from(input.u16()),
        page_us: f64::from(input.u8()),
        zero_us: f64::from(input.u8()),
        message_pages: u32::from(input.u8()),
        stream_pages: u32::from(input.u8()),
    };
    let options = Replay { costs, budget, feedback: input.u8() % 2 == 1 };
    let locality = Arc::new(LocalityOrder::new(map(&recipe)));
    let (mut steps, mut touches, mut at_us) = (Vec::new(), Vec::new(), 0_u64);
    while !input.is_empty() && steps.len() < 64 {
        let step =
            step((input.u8(), u32::from_le_bytes(input.bytes()), input.u8()), locality.frames());
        if let Step::Fault(fault) = step {
            // Small steps mostly, and now and then one to the end of time.
            let pause = u64::from(input.u16());
            at_us =
                at_us.saturating_add(if pause == u64::from(u16::MAX) { 1 << 62 } else { pause });
            let (frame, access, vcpu) = (fault.frame, fault.access, u16::from(fault.in_flight));
            touches.push(Touch { at_us, frame, access, vcpu });
        }
        steps.push(step);
    }
    let trace = Trace::new(touches, locality.layout());
    for (mut policy, mut again) in policies(&locality).into_iter().zip(policies(&locality)) {
        let plans = run(&locality, &mut *policy, &steps, budget, true);
        let same = run(&locality, &mut *again, &steps, budget, false);
        assert_eq!(plans, same, "{}: other plans", policy.name());
        if let Err(wrong) = plans {
            panic!("{wrong}");
        }
    }
    for mut policy in policies(&locality) {
        let metrics = replay(&trace, &locality, &mut *policy, &options);
        let touched = metrics.needed + metrics.free_touched;
        assert_eq!(touched as usize, trace.touches().len());
        let waits = metrics.faults + metrics.late + metrics.zero_faults;
        assert_eq!(waits as usize, metrics.waits_us.len());
        assert_eq!(metrics.transferred, metrics.faults + metrics.prefetched);
        assert!(metrics.used <= metrics.prefetched && metrics.covered <= metrics.used);
        assert!(
            metrics.transferred <= locality.frames()
                && metrics.free_transferred <= metrics.transferred
        );
        assert!(metrics.waits_us.is_sorted() && metrics.samples.len() <= 256);
    }
});
