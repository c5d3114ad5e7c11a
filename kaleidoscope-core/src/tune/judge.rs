//! Scores settings on given traces.

use super::bench::Bench;
use crate::prefetch::{Class, LocalityOrder, Settings};
use crate::replay::Trace;
use std::sync::Arc;

/// A guest with traces of its clones.
#[derive(Clone, Debug)]
pub struct TracedGuest {
    /// The guest.
    pub locality: Arc<LocalityOrder>,
    /// Accesses of its clones.
    pub traces: Vec<Trace>,
}

/// Result of settings, relative to blind aligned blocks of 16 frames: means over traces.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Score {
    /// Faults, relative to the baseline.
    pub faults: f64,
    /// Wasted pages, relative to the baseline.
    pub waste: f64,
    /// Share of the needed frames that were present before they were accessed.
    pub coverage: f64,
    /// Share of the prefetched frames that were needed.
    pub accuracy: f64,
}

impl Score {
    /// The cost that the tuner minimizes: `faults + price * waste`.
    #[must_use]
    pub fn cost(&self, price: f64) -> f64 {
        price.mul_add(self.waste, self.faults)
    }
}

/// Scores settings on the traces of one or more guests.
///
/// Settings that differ little from the [kept](Self::keep) ones are scored fast: only the parts of
/// a trace that the difference can affect are replayed.
#[derive(Debug)]
pub struct Judge<'a> {
    benches: Vec<Bench<'a>>,
}

impl<'a> Judge<'a> {
    /// Replays the baseline on all traces.
    #[must_use]
    pub fn new(subjects: impl IntoIterator<Item = &'a TracedGuest>) -> Self {
        Self { benches: subjects.into_iter().map(Bench::new).collect() }
    }

    /// The guests.
    pub fn subjects(&self) -> impl Iterator<Item = &'a TracedGuest> + '_ {
        self.benches.iter().map(Bench::subject)
    }

    /// Scores settings on all traces; all zeros if there are none. The result depends on the
    /// settings alone, not on earlier calls.
    pub fn score(&mut self, settings: &Settings) -> Score {
        let (mut sum, mut traces) = (Score::default(), 0.0);
        for bench in &mut self.benches {
            bench.replay(settings);
            for (counts, baseline) in bench.results() {
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

    /// Keeps the settings that were scored last as the reference for the next ones.
    pub fn keep(&mut self) {
        self.benches.iter_mut().for_each(Bench::keep);
    }
}

/// Classes of the frames that are accessed in some trace and not free, in order. Only parameters of
/// these classes can be learned from the traces.
#[must_use]
pub fn touched<'a>(subjects: impl IntoIterator<Item = &'a TracedGuest>) -> Vec<Class> {
    let mut touched = [false; Class::COUNT];
    for subject in subjects {
        for touch in subject.traces.iter().flat_map(Trace::touches) {
            let class = subject.locality.class(touch.frame);
            if !subject.locality.is_free(touch.frame)
                && let Some(touched) = touched.get_mut(class.index())
            {
                *touched = true;
            }
        }
    }
    Class::all().filter(|class| touched.get(class.index()) == Some(&true)).collect()
}

/// A ratio; a denominator of zero counts as one.
fn ratio(part: u32, whole: u32) -> f64 {
    f64::from(part) / f64::from(whole.max(1))
}
