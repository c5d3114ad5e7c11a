//! The results of each method of cloning.

use crate::table::{finish, table};
use comfy_table::CellAlignment::{Left, Right};
use kaleidoscope_core::clone::Statistics;
use kaleidoscope_core::color::ColorMap;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A demonstration: the parent's color map, and the results of its clones.
pub(super) struct Demonstration {
    /// The parent's color map; absent for mock machines.
    pub(super) map: Option<ColorMap>,
    pub(super) results: Results,
}

/// The results of all methods.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    /// A description of the cloned guest.
    pub(super) guest: String,
    /// How long the parent was paused; absent for mock machines.
    pub(super) pause_us: Option<f64>,
    /// Number of clones per method.
    pub(super) clones: usize,
    pub(super) ways: Vec<MethodResults>,
}

/// The results of a method. Numbers are means over its clones unless stated otherwise.
#[derive(Debug, Default, Serialize)]
pub(super) struct MethodResults {
    pub(super) name: String,
    /// From the snapshot until the clone runs.
    pub(super) start_us: f64,
    /// From the resuming of the clones until the last one has done its work.
    pub(super) took_ms: f64,
    /// Accesses that waited for a page that was not requested yet, and for one that was.
    pub(super) faults: f64,
    pub(super) late: f64,
    pub(super) prefetched: f64,
    /// Total time that a clone's vCPUs waited.
    pub(super) stalled_ms: f64,
    pub(super) longest_stall_us: Option<f64>,
    pub(super) moved_mib: f64,
    /// Memory of all clones together, by the kernel's count.
    pub(super) memory_mib: f64,
    /// Faults of all clones by color, in descending order.
    pub(super) faults_by_color: Vec<(String, u64)>,
    /// Whether every byte of the clones' processes was right at the end.
    pub(super) is_verified: bool,
    pub(super) samples: Vec<Sample>,
}

/// The state of all clones of a method at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Sample {
    pub(super) at_ms: f64,
    /// Rounds of work of all clones so far.
    pub(super) rounds: u64,
    /// Time that the vCPUs of all clones have waited so far.
    pub(super) stalled_ms: f64,
    /// The same by color of the frame.
    pub(super) stalled_ms_by_color: BTreeMap<&'static str, f64>,
}

impl Sample {
    /// Adds the counters of a clone's engine.
    pub(super) fn count(&mut self, statistics: &Statistics) {
        for (color, counts) in statistics.by_color.iter().filter(|(_, c)| c.stalled_ns > 0) {
            let waited = number(counts.stalled_ns) / 1e6;
            self.stalled_ms += waited;
            *self.stalled_ms_by_color.entry(color.name()).or_default() += waited;
        }
    }
}

/// Milliseconds.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A count as a floating-point number.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

impl MethodResults {
    /// Adds up the counters of the clones' engines.
    pub(super) fn count(&mut self, engines: &[Statistics]) {
        let clones = number(engines.len().max(1) as u64);
        let mut colors: Vec<(String, u64)> = Vec::new();
        for statistics in engines {
            let total = statistics.total();
            self.faults += number(total.faults) / clones;
            self.late += number(total.late) / clones;
            self.prefetched += number(total.prefetched) / clones;
            self.stalled_ms += number(total.stalled_ns) / 1e6 / clones;
            self.moved_mib += number(statistics.bytes()) / clones / f64::from(1 << 20);
            let longest = statistics.stall(1.0).map(|stall| ms(stall) * 1e3);
            self.longest_stall_us = match (self.longest_stall_us, longest) {
                (Some(a), Some(b)) => Some(a.max(b)),
                (a, b) => a.or(b),
            };
            for (color, counts) in statistics.by_color.iter().filter(|(_, c)| c.faults > 0) {
                match colors.iter_mut().find(|(name, _)| name == color.name()) {
                    Some((_, faults)) => *faults += counts.faults,
                    None => colors.push((color.name().to_owned(), counts.faults)),
                }
            }
        }
        colors.sort_by_key(|(_, faults)| std::cmp::Reverse(*faults));
        self.faults_by_color = colors;
    }
}

impl Results {
    /// A table for people.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}, {} clones at once\n", self.guest, self.clones);
        if let Some(pause) = self.pause_us {
            text.push_str(&format!(
                "snapshot of the running guest: paused for {:.2} ms\n",
                pause / 1e3
            ));
        }
        let mut out = table([
            ("", Left),
            ("start us", Right),
            ("done ms", Right),
            ("faults", Right),
            ("late", Right),
            ("ahead", Right),
            ("waited ms", Right),
            ("longest us", Right),
            ("moved MiB", Right),
            ("memory MiB", Right),
            ("bytes", Left),
        ]);
        for method in &self.ways {
            out.add_row([
                method.name.clone(),
                format!("{:.0}", method.start_us),
                format!("{:.1}", method.took_ms),
                format!("{:.0}", method.faults),
                format!("{:.0}", method.late),
                format!("{:.0}", method.prefetched),
                format!("{:.1}", method.stalled_ms),
                method.longest_stall_us.map_or_else(String::new, |us| format!("{us:.0}")),
                format!("{:.1}", method.moved_mib),
                format!("{:.1}", method.memory_mib),
                if method.is_verified { "all correct" } else { "not checked" }.to_owned(),
            ]);
        }
        text.push_str(&finish(&out));
        text
    }
}
