//! The replays as a JSON array, one object per trace and policy.

use super::runs::Results;
use super::traces::NamedTrace;
use kaleidoscope_core::color::Color;
use kaleidoscope_core::replay::Metrics;
use serde::{Serialize, Serializer};

/// A replay.
#[derive(Serialize)]
struct Row<'a> {
    trace: &'a str,
    policy: String,
    cost_model: &'a str,
    needed_frames: u32,
    free_touched_frames: u32,
    faults: u32,
    late: u32,
    zero_faults: u32,
    prefetched_frames: u32,
    wasted_frames: u32,
    free_transferred_frames: u32,
    transferred_frames: u32,
    bytes: u64,
    coverage: f64,
    accuracy: f64,
    stall_us: f64,
    wait_p50_us: f64,
    wait_p99_us: f64,
    working_set_us: WorkingSet,
    resident_frames: u32,
    #[serde(serialize_with = "by_color")]
    footprint_frames: &'a Metrics,
}

/// Microseconds until a percentage of the needed frames was resident.
#[derive(Serialize)]
struct WorkingSet {
    #[serde(rename = "50")]
    p50: u64,
    #[serde(rename = "90")]
    p90: u64,
    #[serde(rename = "99")]
    p99: u64,
}

/// The array, trace by trace, ending with a line feed.
pub(super) fn render(traces: &[NamedTrace], results: &[&Results], cost: &str) -> String {
    let rows: Vec<_> = traces
        .iter()
        .enumerate()
        .flat_map(|(at, trace)| {
            let replays = results.iter().filter_map(move |r| Some((r, r.traces.get(at)?)));
            replays.map(|(results, metrics)| row(&trace.name, results, metrics, cost))
        })
        .collect();
    // Serializing strings, numbers and maps with text keys cannot fail.
    let mut text = serde_json::to_string_pretty(&rows).unwrap_or_default();
    text.push('\n');
    text
}

fn row<'a>(trace: &'a str, results: &Results, metrics: &'a Metrics, cost: &'a str) -> Row<'a> {
    let [p50, p90, p99] = metrics.working_set_us;
    Row {
        trace,
        policy: results.policy.to_string(),
        cost_model: cost,
        needed_frames: metrics.needed,
        free_touched_frames: metrics.free_touched,
        faults: metrics.faults,
        late: metrics.late,
        zero_faults: metrics.zero_faults,
        prefetched_frames: metrics.prefetched,
        wasted_frames: metrics.wasted(),
        free_transferred_frames: metrics.free_transferred,
        transferred_frames: metrics.transferred,
        bytes: metrics.bytes(),
        coverage: metrics.coverage(),
        accuracy: metrics.accuracy(),
        stall_us: metrics.stall_us,
        wait_p50_us: metrics.wait_us(0.5),
        wait_p99_us: metrics.wait_us(0.99),
        working_set_us: WorkingSet { p50, p90, p99 },
        resident_frames: metrics.resident(),
        footprint_frames: metrics,
    }
}

/// Frames that take memory at the end, by color. Colors without frames are left out.
fn by_color<S: Serializer>(metrics: &&Metrics, serializer: S) -> Result<S::Ok, S::Error> {
    let colors = Color::ALL.into_iter().zip(metrics.footprint).filter(|(_, frames)| *frames > 0);
    serializer.collect_map(colors.map(|(color, frames)| (color.name(), frames)))
}

#[cfg(test)]
mod tests {
    use super::super::policies::PolicyChoice;
    use super::*;
    use kaleidoscope_core::replay::Trace;

    #[test]
    fn rows_are_sorted_by_trace_and_hold_everything() {
        let trace = |name: &str| NamedTrace { name: name.into(), trace: Trace::default() };
        let mut metrics = Metrics {
            needed: 4,
            covered: 1,
            prefetched: 8,
            used: 2,
            waits_us: vec![1.0, 2.0, 9.0],
            working_set_us: [5, 6, 7],
            transferred: 3,
            ..Metrics::default()
        };
        metrics.footprint[Color::Slab as usize] = 3;
        let results =
            |policy| Results { policy, traces: vec![metrics.clone(), Metrics::default()] };
        let (demand, paper) = (results(PolicyChoice::Demand), results(PolicyChoice::Paper));
        let text = render(&[trace("a"), trace("b")], &[&demand, &paper], "gbe");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let names = |i: usize| (value[i]["trace"].as_str(), value[i]["policy"].as_str());
        assert_eq!(names(1), (Some("a"), Some("paper")));
        assert_eq!(names(2), (Some("b"), Some("demand")));
        let row = &value[0];
        assert_eq!((&row["needed_frames"], &row["wasted_frames"]), (&4.into(), &6.into()));
        assert_eq!((&row["coverage"], &row["accuracy"]), (&0.25.into(), &0.25.into()));
        assert_eq!((&row["wait_p50_us"], &row["wait_p99_us"]), (&2.0.into(), &9.0.into()));
        assert_eq!(row["working_set_us"], serde_json::json!({"50": 5, "90": 6, "99": 7}));
        assert_eq!((&row["bytes"], &row["resident_frames"]), (&12288.into(), &3.into()));
        assert_eq!(row["footprint_frames"], serde_json::json!({"slab": 3}));
        assert_eq!(row["cost_model"], "gbe");
        assert_eq!(value[2]["coverage"], 1.0, "nothing was needed");
    }
}
