//! What is worth streaming before anybody asks.

use super::descent::Descent;
use crate::addr::FrameIndex;
use crate::color::{Color, FrameKind, Temperature};
use crate::prefetch::{Class, RecencyHint};
use std::collections::HashMap;

/// Signs that are looked at, alone and together.
const SIGNS: [Temperature; 9] = [
    Temperature::NONE,
    Temperature::COMMON,
    Temperature::FREQUENT,
    Temperature::ACTIVE,
    Temperature::REFERENCED,
    Temperature::ACCESSED,
    Temperature::SHARED,
    Temperature::RECENT_TASK,
    Temperature::ACCESSED.union(Temperature::RECENT_TASK),
];

/// What is used less often than this is not looked at: prefetching it would waste more than half.
const LEAST_PRECISION: f64 = 0.3;

/// Precisions at which lists of caches are cut, to try each.
const CUTS: [f64; 6] = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4];

/// How often frames with something in common were touched: the sum over guests of the mean over
/// their traces.
#[derive(Clone, Copy, Default)]
struct Tally {
    touched: f64,
    frames: f64,
}

impl Tally {
    fn precision(self) -> f64 {
        if self.frames > 0.0 { self.touched / self.frames } else { 0.0 }
    }
}

/// Chooses signs and caches anew, the most precise first, keeping each that helps.
pub(super) fn choose(descent: &mut Descent<'_>) {
    let heat = heats(descent);
    descent.attempt(|settings| settings.predict.clear());
    for sign in signs(descent, &heat) {
        descent.attempt(|settings| {
            if !settings.predict.contains(&sign) {
                settings.predict.push(sign);
            }
        });
    }
    let caches = caches(descent, &heat);
    for cut in CUTS {
        let wanted = caches.iter().filter(|(_, precision)| *precision >= cut);
        let wanted: Vec<String> = wanted.map(|(name, _)| name.clone()).collect();
        descent.attempt(|settings| settings.predict_caches = wanted);
    }
}

/// For each guest the share of its traces that touched each frame.
fn heats(descent: &Descent<'_>) -> Vec<Vec<f64>> {
    let of_guest = |subject: &super::TracedGuest| {
        let mut heat = vec![0.0; subject.locality.frames() as usize];
        let share = 1.0 / f64::from(u32::try_from(subject.traces.len().max(1)).unwrap_or(u32::MAX));
        for touch in subject.traces.iter().flat_map(|trace| trace.touches()) {
            if let Some(heat) = heat.get_mut(touch.frame.as_usize()) {
                *heat += share;
            }
        }
        heat
    };
    descent.judge.subjects().map(of_guest).collect()
}

/// Signs worth trying, the most precise first.
fn signs(descent: &Descent<'_>, heats: &[Vec<f64>]) -> Vec<RecencyHint> {
    let mut tallies = vec![[Tally::default(); SIGNS.len()]; Class::COUNT];
    for (subject, heat) in descent.judge.subjects().zip(heats) {
        let locality = &subject.locality;
        let frames = (0..).map(FrameIndex).zip(heat).zip(locality.map().temperatures());
        for ((frame, heat), temperature) in frames.filter(|((f, _), _)| !locality.is_free(*f)) {
            let row = tallies.get_mut(locality.class(frame).index());
            for (tally, sign) in row.into_iter().flatten().zip(SIGNS) {
                if temperature.contains(sign) {
                    tally.touched += heat;
                    tally.frames += 1.0;
                }
            }
        }
    }
    let mut found = Vec::new();
    for (class, row) in Class::all().zip(&tallies) {
        let wanted = row.iter().zip(SIGNS).filter(|(t, _)| t.precision() >= LEAST_PRECISION);
        found
            .extend(wanted.map(|(tally, signs)| (tally.precision(), RecencyHint { class, signs })));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, sign)| sign).collect()
}

/// Slab caches with the precision of streaming them whole.
fn caches(descent: &Descent<'_>, heats: &[Vec<f64>]) -> Vec<(String, f64)> {
    let mut tallies = HashMap::<&str, Tally>::new();
    for (subject, heat) in descent.judge.subjects().zip(heats) {
        let locality = &subject.locality;
        for (stretch, region) in (0..).zip(locality.map().regions()) {
            if region.kind != FrameKind::Slab || region.name.is_empty() {
                continue;
            }
            let tally = tallies.entry(region.name.as_str()).or_default();
            for frame in locality.run(locality.range(stretch)) {
                if locality.color(*frame) == Color::Slab {
                    tally.touched += heat.get(frame.as_usize()).copied().unwrap_or(0.0);
                    tally.frames += 1.0;
                }
            }
        }
    }
    let mut caches: Vec<_> =
        tallies.into_iter().map(|(name, tally)| (name.to_owned(), tally.precision())).collect();
    caches.sort_by(|a, b| a.0.cmp(&b.0));
    caches
}
