//! Chooses the frames that are worth streaming before a fault.

use super::descent::Descent;
use crate::addr::FrameIndex;
use crate::color::{Color, FrameKind, Temperature};
use crate::prefetch::{Class, RecencyHint};
use std::collections::HashMap;

/// Candidate hints.
const HINTS: [Temperature; 9] = [
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

/// Candidates with a lower precision are not tried: most of their pages would be wasted.
const MIN_PRECISION: f64 = 0.3;

/// Precision thresholds at which the list of caches is tried.
const PRECISION_CUTS: [f64; 6] = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4];

/// Touches of frames that share a property: the sum over guests of the mean over their traces.
#[derive(Clone, Copy, Default)]
struct TouchCounts {
    touched: f64,
    frames: f64,
}

impl TouchCounts {
    fn precision(self) -> f64 {
        if self.frames > 0.0 { self.touched / self.frames } else { 0.0 }
    }
}

/// Chooses hints and caches anew, the most precise first, and keeps each that lowers the cost.
pub(super) fn choose(descent: &mut Descent<'_>) {
    let access_rate = access_rates(descent);
    descent.attempt(|settings| settings.predict.clear());
    for hint in hints(descent, &access_rate) {
        descent.attempt(|settings| {
            if !settings.predict.contains(&hint) {
                settings.predict.push(hint);
            }
        });
    }
    let caches = caches(descent, &access_rate);
    for cut in PRECISION_CUTS {
        let wanted = caches.iter().filter(|(_, precision)| *precision >= cut);
        let wanted: Vec<String> = wanted.map(|(name, _)| name.clone()).collect();
        descent.attempt(|settings| settings.predict_caches = wanted);
    }
}

/// The share of each guest's traces that touched each frame.
fn access_rates(descent: &Descent<'_>) -> Vec<Vec<f64>> {
    let of_guest = |subject: &super::TracedGuest| {
        let mut access_rate = vec![0.0; subject.locality.frames() as usize];
        let share = 1.0 / f64::from(u32::try_from(subject.traces.len().max(1)).unwrap_or(u32::MAX));
        for touch in subject.traces.iter().flat_map(|trace| trace.touches()) {
            if let Some(access_rate) = access_rate.get_mut(touch.frame.as_usize()) {
                *access_rate += share;
            }
        }
        access_rate
    };
    descent.judge.subjects().map(of_guest).collect()
}

/// Candidate hints, the most precise first.
fn hints(descent: &Descent<'_>, access_rates: &[Vec<f64>]) -> Vec<RecencyHint> {
    let mut tallies = vec![[TouchCounts::default(); HINTS.len()]; Class::COUNT];
    for (subject, access_rate) in descent.judge.subjects().zip(access_rates) {
        let locality = &subject.locality;
        let frames = (0..).map(FrameIndex).zip(access_rate).zip(locality.map().temperatures());
        for ((frame, access_rate), temperature) in
            frames.filter(|((f, _), _)| !locality.is_free(*f))
        {
            let row = tallies.get_mut(locality.class(frame).index());
            for (tally, hint) in row.into_iter().flatten().zip(HINTS) {
                if temperature.contains(hint) {
                    tally.touched += access_rate;
                    tally.frames += 1.0;
                }
            }
        }
    }
    let mut found = Vec::new();
    for (class, row) in Class::all().zip(&tallies) {
        let wanted = row.iter().zip(HINTS).filter(|(t, _)| t.precision() >= MIN_PRECISION);
        found
            .extend(wanted.map(|(tally, signs)| (tally.precision(), RecencyHint { class, signs })));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, hint)| hint).collect()
}

/// Slab caches with the precision of streaming them whole.
fn caches(descent: &Descent<'_>, access_rates: &[Vec<f64>]) -> Vec<(String, f64)> {
    let mut tallies = HashMap::<&str, TouchCounts>::new();
    for (subject, access_rate) in descent.judge.subjects().zip(access_rates) {
        let locality = &subject.locality;
        for (stretch, region) in (0..).zip(locality.map().regions()) {
            if region.kind != FrameKind::Slab || region.name.is_empty() {
                continue;
            }
            let tally = tallies.entry(region.name.as_str()).or_default();
            for frame in locality.run(locality.range(stretch)) {
                if locality.color(*frame) == Color::Slab {
                    tally.touched += access_rate.get(frame.as_usize()).copied().unwrap_or(0.0);
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
