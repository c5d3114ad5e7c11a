//! How good settings are on given traces.

use crate::prefetch::{Atlas, Blind, Colored, Guide, Settings};
use crate::replay::{Counter, Counts, Trace};
use std::sync::Arc;

/// Frames of one plan while tuning; as the replay's default.
const BUDGET: usize = 256;

/// The baseline: blind aligned blocks of this many frames.
const BASELINE: u32 = 16;

/// A guest with traces of its clones.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The guest.
    pub atlas: Arc<Atlas>,
    /// Touches of its clones.
    pub traces: Vec<Trace>,
}

/// How settings do, relative to blind aligned blocks of 16: means over traces.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Score {
    /// Faults.
    pub faults: f64,
    /// Wasted pages.
    pub waste: f64,
    /// Share of the needed frames that were there before they were touched.
    pub coverage: f64,
    /// Share of prefetched frames that were needed.
    pub accuracy: f64,
}

impl Score {
    /// What the tuner minimizes.
    #[must_use]
    pub fn cost(&self, price: f64) -> f64 {
        price.mul_add(self.waste, self.faults)
    }
}

/// Judges settings on the traces of one or more guests.
#[derive(Debug)]
pub struct Judge<'a> {
    subjects: Vec<(&'a Subject, Counter, Vec<Counts>)>,
}

impl<'a> Judge<'a> {
    /// Replays the baseline on all traces.
    #[must_use]
    pub fn new(subjects: impl IntoIterator<Item = &'a Subject>) -> Self {
        let measure = |subject: &'a Subject| {
            let mut counter = Counter::new(Arc::clone(&subject.atlas), BUDGET);
            let baseline = |trace| counter.count(trace, &mut Blind::aligned(BASELINE));
            let baselines = subject.traces.iter().map(baseline).collect();
            (subject, counter, baselines)
        };
        Self { subjects: subjects.into_iter().map(measure).collect() }
    }

    /// The guests.
    pub fn subjects(&self) -> impl Iterator<Item = &'a Subject> + '_ {
        self.subjects.iter().map(|(subject, _, _)| *subject)
    }

    /// Replays settings on all traces. All zeros when there are none.
    pub fn score(&mut self, settings: &Settings) -> Score {
        let (mut sum, mut traces) = (Score::default(), 0.0);
        for (subject, counter, baselines) in &mut self.subjects {
            let guide = Arc::new(Guide::new(Arc::clone(&subject.atlas), settings.clone()));
            for (trace, baseline) in subject.traces.iter().zip(baselines) {
                let counts = counter.count(trace, &mut Colored::new(Arc::clone(&guide)));
                sum.faults += ratio(counts.faults, baseline.faults);
                sum.waste += ratio(counts.wasted(), baseline.wasted());
                sum.coverage += 1.0 - ratio(counts.faults, counts.needed);
                sum.accuracy += ratio(counts.used, counts.prefetched);
                traces += 1.0;
            }
        }
        let mean = |sum: f64| if traces > 0.0 { sum / traces } else { 0.0 };
        Score {
            faults: mean(sum.faults),
            waste: mean(sum.waste),
            coverage: mean(sum.coverage),
            accuracy: mean(sum.accuracy),
        }
    }
}

/// A ratio whose denominator counts as one when it is zero.
fn ratio(part: u32, whole: u32) -> f64 {
    f64::from(part) / f64::from(whole.max(1))
}
