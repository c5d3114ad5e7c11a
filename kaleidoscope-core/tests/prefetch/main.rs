//! Properties of every policy, on guests and faults of every shape.

mod maps;
mod plans;
mod policies;

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::color::{Color, FrameKind, RegionId};
use kaleidoscope_core::prefetch::{
    Access, Answer, Fault, LocalityOrder, Paper, Plan, Planner, PrefetchPolicy, Presence,
};
use maps::{Recipe, map};
use plans::{Step, run, step};
use policies::policies;
use proptest::prelude::*;
use std::sync::Arc;

/// Guests of every shape.
fn recipes() -> impl Strategy<Value = Recipe> {
    let ram = prop::collection::vec((0..6_u8, 1..200_u8), 1..6);
    let free_percent = prop_oneof![Just(0), Just(100), 1..100_u8];
    // From many small regions to a few large ones.
    (
        ram,
        prop_oneof![0..4_u8, 0..=255_u8],
        free_percent,
        prop_oneof![1..4_u8, 1..200_u8],
        any::<u64>(),
    )
        .prop_map(|(ram, regions, free_percent, run, seed)| Recipe {
            ram,
            regions,
            free_percent,
            run,
            seed,
        })
}

fn steps() -> impl Strategy<Value = Vec<(u8, u32, u8)>> {
    prop::collection::vec(any::<(u8, u32, u8)>(), 1..80)
}

proptest! {
    #[test]
    fn every_plan_is_valid(recipe in recipes(), raw in steps(), budget in 0..300_usize) {
        let locality = Arc::new(LocalityOrder::new(map(&recipe)));
        let steps: Vec<Step> = raw.iter().map(|raw| step(*raw, locality.frames())).collect();
        for (mut policy, mut again) in policies(&locality).into_iter().zip(policies(&locality)) {
            let plans = run(&locality, &mut *policy, &steps, budget, true);
            prop_assert!(plans.is_ok(), "{}", plans.unwrap_err());
            // The same faults give the same plans, whatever the plan held before.
            prop_assert_eq!(&plans, &run(&locality, &mut *again, &steps, budget, false));
        }
    }

    #[test]
    fn the_locality_order_is_a_permutation_of_the_map(recipe in recipes()) {
        let map = map(&recipe);
        let locality = LocalityOrder::new(map.clone());
        let all = locality.run(0..u32::MAX);
        prop_assert_eq!(all.len(), map.len());
        // Small files come first, in the order of their inodes, else of their first frames; then
        // region by region, each by position and frame; then the rest by frame.
        let members = map.members();
        let key = |frame: &FrameIndex| {
            let known = map.frame(*frame).unwrap();
            let Some(id) = known.region else {
                return (true, None, RegionId(u32::MAX), 0, *frame);
            };
            let region = map.region(id).unwrap();
            let is_small = region.kind == FrameKind::File && region.frames <= 32;
            let first = region.anchor.unwrap_or(members.of(id)[0]);
            (!is_small, is_small.then_some(first), id, known.position, *frame)
        };
        prop_assert!(all.is_sorted_by_key(key));
        for (place, frame) in (0..).zip(all) {
            prop_assert_eq!(locality.position(*frame), Some(place));
            let stretch = locality.stretch(*frame).unwrap();
            prop_assert!(locality.range(stretch).contains(&place));
            let region = map.frame(*frame).unwrap().region;
            prop_assert_eq!(stretch as usize, region.map_or(map.regions().len(), |r| r.0 as usize));
        }
        prop_assert_eq!(locality.stretches(), map.regions().len() + 1);
        for frame in all {
            let small = key(frame).0;
            let position = locality.position(*frame).unwrap();
            prop_assert_eq!(!small, locality.small_files().contains(&position));
        }
        let backwards = std::ops::Range { start: 5, end: 2 };
        prop_assert_eq!(locality.run(backwards).len() + locality.range(u32::MAX).len(), 0);
        let past = FrameIndex(locality.frames());
        prop_assert_eq!((locality.position(past), locality.stretch(past)), (None, None));
        prop_assert_eq!((locality.color(past), locality.is_free(past)), (Color::Unknown, false));
    }

    #[test]
    fn the_paper_looks_ahead_among_frames_of_the_color(recipe in recipes(), frame: u32) {
        let locality = Arc::new(LocalityOrder::new(map(&recipe)));
        let frame = FrameIndex(frame % locality.frames());
        let color = locality.color(frame).paper();
        let window = match color.name() {
            "kernel-code" | "user-code" => 4,
            "kernel-data" | "unknown" => 12,
            "user-data" => 16,
            "page-cache" => 8,
            free => { prop_assert_eq!(free, "free"); 0 }
        };
        let colors = (0..locality.frames()).map(FrameIndex);
        let ahead: Vec<_> = colors
            .filter(|f| *f > frame && locality.color(*f).paper() == color)
            .take(window)
            .collect();
        let mut plan = Plan::new(Arc::clone(&locality), 300);
        let fault = Fault { frame, access: Access::Read, in_flight: false };
        Paper::new(Arc::clone(&locality)).fault(&fault, &mut plan.begin(&Nothing, Some(frame)));
        prop_assert_eq!(plan.fetch(), ahead);
        prop_assert_eq!(plan.answer() == Answer::Zero, color.name() == "free");
    }

    #[test]
    fn a_planner_rejects_invalid_frames(
        recipe in recipes(), raw in steps(), budget in 0..300_usize, seed: u64,
    ) {
        let locality = Arc::new(LocalityOrder::new(map(&recipe)));
        let steps: Vec<Step> = raw.iter().map(|raw| step(*raw, locality.frames())).collect();
        let mut policy = AnyPolicy(kaleidoscope_mock::Rng::new(seed));
        let plans = run(&locality, &mut policy, &steps, budget, true);
        prop_assert!(plans.is_ok(), "{}", plans.unwrap_err());
    }
}

/// A clone without any present frame.
struct Nothing;

impl Presence for Nothing {
    fn is_absent(&self, _: FrameIndex) -> bool {
        true
    }
}

/// A policy that tries to plan any frame.
struct AnyPolicy(kaleidoscope_mock::Rng);

impl PrefetchPolicy for AnyPolicy {
    fn name(&self) -> &str {
        "blind-wild"
    }

    fn fault(&mut self, _: &Fault, planner: &mut Planner<'_>) {
        self.background(planner);
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        let frames = u64::from(planner.locality().frames());
        for _ in 0..self.0.below(400) {
            let frame = if self.0.one_in(20) { u64::MAX } else { self.0.below(frames + 2) };
            let frame = FrameIndex(u32::try_from(frame).unwrap_or(u32::MAX));
            let (room, planned) = (planner.room(), planner.planned().len());
            let was_absent = planner.is_absent(frame);
            let is_planned = match self.0.below(20) {
                0 => {
                    planner.answer_with_zeros();
                    continue;
                }
                1..8 => planner.zero(frame),
                8..14 => planner.fetch(frame),
                14..19 => planner.fetch_used(frame),
                _ => {
                    planner.limit(250);
                    assert_eq!(planner.room(), room.min(250));
                    continue;
                }
            };
            let fetched = planner.planned().len() - planned;
            assert_eq!(room - planner.room(), fetched);
            assert!(fetched <= usize::from(is_planned) && (was_absent || !is_planned));
            assert!(!is_planned || !planner.is_absent(frame));
        }
    }
}
