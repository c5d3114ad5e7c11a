//! Random programs under random policies and failures: every byte is right, or the clone reports
//! why it stops.

use crate::guest::{BACKGROUNDS, FEEDBACKS, Policy, Recipe, Run, run};
use kaleidoscope_core::clone::{EngineOptions, FreeFrames};
use kaleidoscope_mock::clone::{Call, Failure, Program, Threads, When};
use proptest::prelude::*;
use proptest::sample::select;
use std::time::Duration;

const POLICIES: [Policy; 6] =
    [Policy::Demand, Policy::Next, Policy::Aligned, Policy::Colored, Policy::Paper, Policy::Random];

fn options() -> impl Strategy<Value = EngineOptions> {
    let background = select(BACKGROUNDS.to_vec());
    let feedback = select(FEEDBACKS.to_vec());
    let granule = select(vec![1, 1, 1, 4, 64]);
    (background, feedback, 1usize..80, 1usize..300, 0usize..60, granule).prop_map(
        |(background, feedback, budget, queue, staged, granule)| {
            EngineOptions::default()
                .granule(granule)
                .background(background)
                .feedback(feedback)
                .budget(budget)
                .queue(queue)
                .staged(staged)
        },
    )
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let threads = (1u32..5, 1u32..4).prop_map(|(vcpus, fault)| Threads { vcpus, fault });
    let program = (any::<u64>(), 20u32..300, 0u8..60, 0u8..90, 0u16..60).prop_map(
        |(seed, steps, writes, near, give_backs)| Program { seed, steps, writes, near, give_backs },
    );
    let policy = select(POLICIES.to_vec());
    let host_frames = prop::option::of(600u32..5000);
    let store = prop::option::of(6u32..900);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let rest = (any::<u64>(), 50u32..1200, flags, host_frames, store);
    (rest, policy, options(), threads, program).prop_map(
        |(
            (seed, frames, (shared, zero, pressure), host_frames, store),
            policy,
            mut options,
            threads,
            program,
        )| {
            // Only these policies never fetch free frames; fetched ones would hold the parent's
            // bytes, which are also right.
            if zero && matches!(policy, Policy::Colored | Policy::Random) {
                options.free_frames = FreeFrames::Zero;
            }
            Recipe {
                seed,
                frames,
                policy,
                options,
                threads,
                program,
                shared,
                store,
                pressure,
                host_frames,
                failures: Vec::new(),
            }
        },
    )
}

fn often() -> impl Strategy<Value = When> {
    prop_oneof![(2u64..12).prop_map(When::OneIn), (2u64..12).prop_map(When::Every)]
}

/// Failures that may only slow a clone down.
fn harmless() -> impl Strategy<Value = (Call, When, Failure)> {
    let delay = (1u64..1500).prop_map(|us| Failure::Delay(Duration::from_micros(us)));
    let failure = prop_oneof![
        (Just(Call::Deliver), select(vec![Failure::Twice, Failure::Reorder])),
        (Just(Call::Request), select(vec![Failure::Twice, Failure::Unasked])),
        (select(vec![Call::Install, Call::Zero, Call::ZeroRun]), Just(Failure::Again)),
        (Just(Call::Event), select(vec![Failure::Twice, Failure::Unasked, Failure::Reorder])),
        (
            select(vec![
                Call::Deliver,
                Call::Receive,
                Call::Request,
                Call::Install,
                Call::Zero,
                Call::Wake,
                Call::Wait,
                Call::Event
            ]),
            delay
        ),
    ];
    (failure, often()).prop_map(|((call, failure), when)| (call, when, failure))
}

/// Failures that may stop a clone.
fn harmful() -> impl Strategy<Value = (Call, When, Failure)> {
    let calls = vec![
        Call::Request,
        Call::Receive,
        Call::Install,
        Call::Zero,
        Call::ZeroRun,
        Call::Wake,
        Call::Wait,
        Call::Read,
    ];
    let broken = (select(calls), select(vec![Failure::Fail, Failure::Dead]));
    let wrong =
        (Just(Call::Deliver), select(vec![Failure::Drop, Failure::Unavailable, Failure::Outside]));
    let when = (1u64..400).prop_flat_map(|n| select(vec![When::Nth(n), When::From(n)]));
    (prop_oneof![broken, wrong], when).prop_map(|((call, failure), when)| (call, when, failure))
}

/// Frames still in use, and frames still reserved, after a host's only clone has ended.
fn leftover(run: Run) -> (u64, u64) {
    let Run { engine, host, .. } = run;
    drop(engine);
    (host.used(), host.granted())
}

/// Runs `cases` cases, unless `PROPTEST_CASES` is set.
fn config(cases: u32) -> ProptestConfig {
    let set = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig {
        // Failures depend on thread timing, so that shrinking is of little use.
        max_shrink_iters: 30,
        failure_persistence: None,
        ..ProptestConfig::with_cases(set.unwrap_or(cases))
    }
}

proptest! {
    #![proptest_config(config(120))]

    #[test]
    fn every_byte_is_right_and_nothing_is_lost(
        mut recipe in recipe(),
        failures in prop::collection::vec(harmless(), 0..4),
    ) {
        recipe.failures = failures;
        let run = run(&recipe);
        if let Err(error) = run.report.check() {
            prop_assert!(false, "{error}\n{}", run.describe());
        }
        prop_assert!(run.report.is_complete(), "{}", run.describe());
        prop_assert_eq!(leftover(run), (0, 0));
    }

    #[test]
    fn a_clone_is_right_or_stops(
        mut recipe in recipe(),
        mut failures in prop::collection::vec(harmless(), 0..2),
        fatal in harmful(),
    ) {
        failures.push(fatal);
        recipe.failures = failures;
        recipe.options.timeout = Duration::from_millis(300);
        let run = run(&recipe);
        if let Err(error) = run.report.check() {
            prop_assert!(false, "{error}\n{}", run.describe());
        }
        prop_assert_eq!(leftover(run), (0, 0));
    }
}
