//! The replays as text tables.

use super::policies::{BASELINE, PolicyChoice};
use super::ratios::{Comparison, Figure, FrontierValue, Mean, ratio};
use super::runs::Results;
use super::traces::NamedTrace;
use crate::map_output::statistics::{counted, mib, thousands};
use crate::map_output::table::{finish, number, percent, printable, table};
use comfy_table::CellAlignment::{Left, Right};
use kaleidoscope_core::replay::Metrics;
use std::fmt::Write;

/// Renders a table per trace, the means, and the frontier. `results` includes the chosen policies
/// and the baseline.
pub(super) fn render(
    traces: &[NamedTrace],
    results: &[Results],
    chosen: &[&Results],
    comparison: &Comparison,
) -> String {
    let baseline = results.iter().find(|r| r.policy == BASELINE);
    let mut out = String::new();
    for (at, trace) in traces.iter().enumerate() {
        let Some(baseline) = baseline.and_then(|r| r.traces.get(at)) else { continue };
        let _ = writeln!(
            out,
            "{}: {} frames needed, {} touched that were free, {:.2} s",
            printable(&trace.name),
            number(baseline.needed),
            number(baseline.free_touched),
            seconds(trace),
        );
        let rows = chosen.iter().filter_map(|r| Some((&r.policy, r.traces.get(at)?)));
        out.push_str(&block(rows, baseline));
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "×: relative to {BASELINE}; free: transferred frames that are free in the guest\n"
    );
    let count = counted(traces.len(), "trace");
    let _ = writeln!(out, "geometric means over {count}, relative to {BASELINE}");
    out.push_str(&means(comparison));
    let _ = writeln!(out, "\nfaults against waste, both relative to {BASELINE}");
    out.push_str(&frontier(comparison));
    out
}

/// The trace's duration in seconds, on its own clock.
fn seconds(trace: &NamedTrace) -> f64 {
    let last = trace.trace.touches().last().map_or(0, |touch| touch.at_us);
    std::time::Duration::from_micros(last).as_secs_f64()
}

fn block<'a>(
    rows: impl Iterator<Item = (&'a PolicyChoice, &'a Metrics)>,
    baseline: &Metrics,
) -> String {
    let mut table = table([
        ("policy", Left),
        ("faults", Right),
        ("×", Right),
        ("late", Right),
        ("zero", Right),
        ("wasted", Right),
        ("×", Right),
        ("free", Right),
        ("coverage", Right),
        ("accuracy", Right),
        ("stall ms", Right),
        ("×", Right),
        ("p99 ms", Right),
        ("90 % at ms", Right),
        ("MiB moved", Right),
    ]);
    for (policy, metrics) in rows {
        let times =
            |figure: Figure| format!("{:.2}", ratio(figure.of(metrics), figure.of(baseline)));
        let [_, p90, _] = metrics.working_set_us;
        table.add_row(vec![
            policy.to_string(),
            number(metrics.faults),
            times(Figure::Faults),
            number(metrics.late),
            number(metrics.zero_faults),
            number(metrics.wasted()),
            times(Figure::Waste),
            number(metrics.free_transferred),
            percent(metrics.coverage()),
            percent(metrics.accuracy()),
            format!("{:.1}", metrics.stall_us / 1e3),
            times(Figure::Stall),
            format!("{:.2}", metrics.wait_us(0.99) / 1e3),
            thousands(p90 / 1000),
            format!("{:.1}", mib(metrics.transferred)),
        ]);
    }
    finish(&table)
}

fn means(comparison: &Comparison) -> String {
    let mut table = table([
        ("policy", Left),
        ("faults", Right),
        ("wasted", Right),
        ("stall", Right),
        ("coverage", Right),
        ("accuracy", Right),
    ]);
    for mean in &comparison.chosen {
        table.add_row(vec![
            mean.policy.to_string(),
            faults(mean),
            waste(mean),
            times(mean.stall),
            percent(mean.coverage),
            percent(mean.accuracy),
        ]);
    }
    finish(&table)
}

/// The frontier of blind prefetch, and the chosen policies relative to it.
fn frontier(comparison: &Comparison) -> String {
    let mut table = table([
        ("policy", Left),
        ("faults", Right),
        ("wasted", Right),
        ("blind's faults at this waste", Right),
        ("blind's waste at these faults", Right),
        ("", Left),
    ]);
    for mean in &comparison.blind {
        table.add_row(vec![mean.policy.to_string(), faults(mean), waste(mean)]);
    }
    let chosen = comparison.chosen.iter();
    for mean in chosen.filter(|mean| comparison.blind.iter().all(|b| b.policy != mean.policy)) {
        let better = if comparison.is_better(mean) { "better on both" } else { "" };
        table.add_row(vec![
            mean.policy.to_string(),
            faults(mean),
            waste(mean),
            bound(comparison.blind_faults(mean)),
            bound(comparison.blind_waste(mean)),
            better.to_owned(),
        ]);
    }
    finish(&table)
}

fn faults(mean: &Mean) -> String {
    if mean.never_faults { "none".to_owned() } else { times(mean.faults) }
}

fn waste(mean: &Mean) -> String {
    if mean.wastes_nothing { "none".to_owned() } else { times(mean.waste) }
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2}")
}

fn bound(blind: Option<FrontierValue>) -> String {
    match blind {
        Some(FrontierValue::At(value)) => times(value),
        Some(FrontierValue::Above(value)) => format!("over {}", times(value)),
        Some(FrontierValue::Below(value)) => format!("under {}", times(value)),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::policies::FRONTIER;
    use super::*;
    use kaleidoscope_core::replay::Trace;

    #[test]
    fn traces_means_and_frontier_are_shown() {
        let metrics = |faults, wasted| Metrics {
            needed: 1000,
            covered: 1000 - faults,
            faults,
            prefetched: wasted,
            stall_us: f64::from(faults) * 300.0,
            waits_us: vec![300.0],
            ..Metrics::default()
        };
        let results =
            |policy, faults, wasted| Results { policy, traces: vec![metrics(faults, wasted)] };
        let mut all =
            vec![results(PolicyChoice::Demand, 1000, 0), results(PolicyChoice::Paper, 90, 350)];
        let sizes = FRONTIER.into_iter().zip(1..);
        all.extend(sizes.map(|(policy, n)| results(policy, 1600 >> n, 100 * n)));
        let choices = [PolicyChoice::Demand, PolicyChoice::Paper];
        let comparison = Comparison::new(&all, &choices);
        let traces = [NamedTrace { name: "scan\u{7}".into(), trace: Trace::default() }];
        let text = render(&traces, &all, &[&all[0], &all[1]], &comparison);
        assert!(text.starts_with(
            "scan\\x07: 1,000 frames needed, 0 touched that were free, 0.00 s\npolicy"
        ));
        let lines = |name: &str| -> Vec<Vec<&str>> {
            let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            lines.filter(|words| words.first() == Some(&name)).collect()
        };
        let demand = lines("demand");
        assert_eq!(demand[0][..7], ["demand", "1,000", "10.00", "0", "0", "0", "0.00"]);
        assert_eq!(demand[1][..4], ["demand", "10.00", "none", "10.00"]);
        assert_eq!(demand[2], ["demand", "10.00", "none", "over", "8.00", "under", "0.25"]);
        let paper = lines("paper");
        assert_eq!(paper[2][..3], ["paper", "0.90", "0.88"]);
        assert_eq!(paper[2][5..], ["better", "on", "both"]);
        assert_eq!(lines("blind-aligned-16"), [["blind-aligned-16", "1.00", "1.00"]]);
    }
}
