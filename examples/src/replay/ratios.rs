//! Compares policies with a baseline, and with the frontier of blind prefetch.

use super::policies::{BASELINE, FRONTIER, PolicyChoice};
use super::runs::Results;
use kaleidoscope_core::replay::Metrics;

/// Figures with a smaller relative difference count as equal.
const MARGIN: f64 = 1e-9;

/// A figure relative to the baseline's.
///
/// Both figures are at least 1, so that every ratio is finite and has a logarithm.
pub(super) fn ratio(value: f64, baseline: f64) -> f64 {
    value.max(1.0) / baseline.max(1.0)
}

/// Geometric mean; 1 for no ratios.
fn geometric_mean(ratios: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = ratios.into_iter().fold((0.0, 0.0), |(s, n), r| (s + r.ln(), n + 1.0));
    if count == 0.0 { 1.0 } else { f64::exp(sum / count) }
}

/// A compared figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Figure {
    /// Faults that sent a request to the parent.
    Faults,
    /// Frames that were prefetched but not used.
    Waste,
    /// Waiting time in microseconds.
    Stall,
}

impl Figure {
    /// The figure of a replay.
    pub(super) fn of(self, metrics: &Metrics) -> f64 {
        match self {
            Self::Faults => f64::from(metrics.faults),
            Self::Waste => f64::from(metrics.wasted()),
            Self::Stall => metrics.stall_us,
        }
    }
}

/// A policy's geometric means over all traces, relative to the baseline.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Mean {
    pub(super) policy: PolicyChoice,
    pub(super) faults: f64,
    pub(super) waste: f64,
    pub(super) stall: f64,
    /// No trace had a fault.
    pub(super) never_faults: bool,
    /// No trace had wasted frames. The mean of the waste then only depends on the baseline's waste.
    pub(super) wastes_nothing: bool,
    /// Mean share of needed frames that were resident in time.
    pub(super) coverage: f64,
    /// Mean share of prefetched frames that were needed.
    pub(super) accuracy: f64,
}

/// The chosen policies and the frontier of blind prefetch.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Comparison {
    /// The chosen policies, in order.
    pub(super) chosen: Vec<Mean>,
    /// The blind policies, from the smallest window to the largest.
    pub(super) blind: Vec<Mean>,
}

/// One figure of the blind frontier at a given value of the other one.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum FrontierValue {
    /// Exactly this value.
    At(f64),
    /// Above this bound: the given value is below all points of the frontier.
    Above(f64),
    /// Below this bound: the given value is above all points of the frontier.
    Below(f64),
}

impl Comparison {
    /// Compares chosen policies. `results` includes them, the baseline and the frontier.
    pub(super) fn new(results: &[Results], chosen: &[PolicyChoice]) -> Self {
        let find = |policy: &PolicyChoice| results.iter().find(|r| r.policy == *policy);
        let means = |policies: &[PolicyChoice]| {
            let results = policies.iter().filter_map(find);
            results.filter_map(|r| Some(Mean::of(r, find(&BASELINE)?))).collect()
        };
        Self { chosen: means(chosen), blind: means(&FRONTIER) }
    }

    /// The blind frontier's faults at a policy's waste.
    pub(super) fn blind_faults(&self, mean: &Mean) -> Option<FrontierValue> {
        let points: Vec<_> = self.blind.iter().map(|m| (m.waste, m.faults)).collect();
        interpolate(&points, mean.waste)
    }

    /// The blind frontier's waste at a policy's faults.
    pub(super) fn blind_waste(&self, mean: &Mean) -> Option<FrontierValue> {
        let points: Vec<_> = self.blind.iter().map(|m| (m.faults, m.waste)).collect();
        interpolate(&points, mean.faults)
    }

    /// Whether blind prefetch has more faults at the policy's waste, and more waste at its faults.
    pub(super) fn is_better(&self, mean: &Mean) -> bool {
        let less = |value: f64, blind: Option<FrontierValue>| match blind {
            Some(FrontierValue::At(blind) | FrontierValue::Above(blind)) => {
                value < blind * (1.0 - MARGIN)
            }
            Some(FrontierValue::Below(_)) | None => false,
        };
        less(mean.faults, self.blind_faults(mean)) && less(mean.waste, self.blind_waste(mean))
    }
}

impl Mean {
    fn of(results: &Results, baseline: &Results) -> Self {
        let mean = |figure: Figure| {
            let pairs = results.traces.iter().zip(&baseline.traces);
            geometric_mean(pairs.map(|(m, b)| ratio(figure.of(m), figure.of(b))))
        };
        Self {
            policy: results.policy.clone(),
            faults: mean(Figure::Faults),
            waste: mean(Figure::Waste),
            stall: mean(Figure::Stall),
            never_faults: results.traces.iter().all(|m| m.faults == 0),
            wastes_nothing: results.traces.iter().all(|m| m.wasted() == 0),
            coverage: average(results.traces.iter().map(Metrics::coverage)),
            accuracy: average(results.traces.iter().map(Metrics::accuracy)),
        }
    }
}

/// Arithmetic mean; 0 for no values.
fn average(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
    if count == 0.0 { 0.0 } else { sum / count }
}

/// Interpolates the second coordinate of a falling line at a value of the first, on logarithmic
/// scales. If the line passes the value more than once, the lowest result counts. Beyond the ends,
/// only a bound is known. `None` without points.
fn interpolate(points: &[(f64, f64)], value: f64) -> Option<FrontierValue> {
    let segments = points.windows(2).filter_map(|pair| match pair {
        [(x0, y0), (x1, y1)] => {
            let (low, high) = (x0.min(*x1), x0.max(*x1));
            let inside = (low..=high).contains(&value);
            let part = if low < high { (value / x0).ln() / (x1 / x0).ln() } else { 0.0 };
            inside.then(|| (y0.ln() + part * (y1 / y0).ln()).exp())
        }
        _ => None,
    });
    if let Some(lowest) = segments.min_by(f64::total_cmp) {
        return Some(FrontierValue::At(lowest));
    }
    let first = points.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
    let last = points.iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(if value < first.0 { FrontierValue::Above(first.1) } else { FrontierValue::Below(last.1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(faults: u32, wasted: u32) -> Metrics {
        Metrics { faults, prefetched: wasted, stall_us: 100.0, ..Metrics::default() }
    }

    fn near(blind: Option<FrontierValue>, expected: f64) -> bool {
        matches!(blind, Some(FrontierValue::At(value)) if (value / expected - 1.0).abs() < 1e-12)
    }

    #[test]
    fn ratios_of_nothing_are_numbers() {
        assert_eq!(ratio(0.0, 0.0), 1.0);
        assert_eq!(ratio(0.0, 50.0), 0.02);
        assert_eq!(ratio(7.0, 0.0), 7.0);
        assert!((geometric_mean([2.0, 8.0]) - 4.0).abs() < 1e-12);
        assert_eq!(geometric_mean([]), 1.0);
    }

    #[test]
    fn lines_are_interpolated_on_logarithms() {
        let line = [(1.0, 16.0), (4.0, 4.0), (16.0, 1.0)];
        assert!(near(interpolate(&line, 2.0), 8.0));
        assert!(near(interpolate(&line, 8.0), 2.0));
        assert!(near(interpolate(&line, 4.0), 4.0));
        assert_eq!(interpolate(&line, 0.5), Some(FrontierValue::Above(16.0)));
        assert_eq!(interpolate(&line, 20.0), Some(FrontierValue::Below(1.0)));
        let reversed: Vec<_> = line.into_iter().rev().collect();
        assert!(near(interpolate(&reversed, 2.0), 8.0));
        assert_eq!(interpolate(&reversed, 0.5), Some(FrontierValue::Above(16.0)));
        assert!(near(interpolate(&[(2.0, 3.0), (2.0, 1.0)], 2.0), 3.0), "an upright line");
        assert_eq!(interpolate(&[(1.0, 3.0)], 2.0), Some(FrontierValue::Below(3.0)));
        assert_eq!(interpolate(&[], 2.0), None);
    }

    #[test]
    fn only_what_is_below_the_frontier_is_better() {
        let blind = FRONTIER.iter().zip([800, 400, 200, 100, 50, 25, 12, 6]).zip(1..);
        let mut results: Vec<_> = blind
            .map(|((policy, faults), n)| Results {
                policy: policy.clone(),
                traces: vec![metrics(faults, 10 * n), metrics(10 * faults, 100 * n)],
            })
            .collect();
        let chosen = [
            (PolicyChoice::Paper, 90, 35),
            (PolicyChoice::PaperPivot, 110, 45),
            (PolicyChoice::Demand, 2000, 0),
            (PolicyChoice::Oracle, 1, 0),
        ];
        for (policy, faults, wasted) in chosen.clone() {
            let traces = vec![metrics(faults, wasted), metrics(10 * faults, 10 * wasted)];
            results.push(Results { policy, traces });
        }
        let mut chosen: Vec<_> = chosen.into_iter().map(|(policy, _, _)| policy).collect();
        chosen.push(BASELINE);
        let comparison = Comparison::new(&results, &chosen);
        let better: Vec<_> = comparison.chosen.iter().map(|m| comparison.is_better(m)).collect();
        assert_eq!(better, [true, false, false, true, false]);
        let [paper, _, demand, oracle, baseline] = &comparison.chosen[..] else { panic!() };
        assert!((paper.faults - 0.9).abs() < 1e-12 && (paper.waste - 0.875).abs() < 1e-12);
        assert!(!paper.wastes_nothing && demand.wastes_nothing && oracle.wastes_nothing);
        assert_eq!((baseline.faults, baseline.waste, baseline.stall), (1.0, 1.0, 1.0));
        assert!(near(comparison.blind_faults(baseline), 1.0));
        assert!(matches!(comparison.blind_faults(demand), Some(FrontierValue::Above(_))));
        assert!(matches!(comparison.blind_waste(demand), Some(FrontierValue::Below(_))));
    }
}
