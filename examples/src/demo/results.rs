//! What the clones of each way did.

use crate::map_output::table::{finish, table};
use comfy_table::CellAlignment::{Left, Right};
use kaleidoscope_core::clone::Statistics;
use kaleidoscope_core::color::ColorMap;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A demonstration: what the parent is, and how its clones did.
pub(super) struct Contest {
    /// What the parent's frames are; absent for mock machines.
    pub(super) map: Option<ColorMap>,
    pub(super) results: Results,
}

/// How the clones did.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    /// What was cloned, in words.
    pub(super) guest: String,
    /// How long the parent stood still, where it ran.
    pub(super) pause_us: Option<f64>,
    /// Clones of each way.
    pub(super) clones: usize,
    pub(super) ways: Vec<Way>,
}

/// A way to clone, and how it went; numbers are means over the clones unless they say otherwise.
#[derive(Debug, Default, Serialize)]
pub(super) struct Way {
    pub(super) name: String,
    /// From what the freeze left until the clone runs.
    pub(super) start_us: f64,
    /// Until the last clone has done its work.
    pub(super) took_us: f64,
    /// Touches that waited for a page, and those that a page on its way met.
    pub(super) faults: f64,
    pub(super) late: f64,
    pub(super) prefetched_frames: f64,
    /// Time that vCPUs waited.
    pub(super) stalled_us: f64,
    pub(super) longest_stall_us: Option<f64>,
    pub(super) moved_bytes: f64,
    /// Memory that all clones took together, as the kernel counts it.
    pub(super) memory_bytes: f64,
    /// Faults by color, the most first.
    pub(super) faults_by_color: Vec<(String, u64)>,
    /// Every byte that a clone owns was right at its end.
    pub(super) is_verified: bool,
    pub(super) samples: Vec<Sample>,
}

/// All clones of a way at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Sample {
    pub(super) at_us: f64,
    /// Rounds of work that they have done together.
    pub(super) rounds: u64,
    /// Time that their vCPUs have waited, together.
    pub(super) stalled_us: f64,
    /// The same for frames of each color.
    pub(super) stalled_us_by_color: BTreeMap<&'static str, f64>,
}

impl Sample {
    /// Adds what a clone's engine has counted so far.
    pub(super) fn count(&mut self, statistics: &Statistics) {
        for (color, counts) in statistics.by_color.iter().filter(|(_, c)| c.stalled_ns > 0) {
            let waited = number(counts.stalled_ns) / 1e3;
            self.stalled_us += waited;
            *self.stalled_us_by_color.entry(color.name()).or_default() += waited;
        }
    }
}

/// Milliseconds.
pub(super) fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Bytes in MiB.
pub(super) fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

impl Way {
    /// Adds up what the engines of a way's clones counted.
    pub(super) fn count(&mut self, engines: &[Statistics]) {
        let clones = number(engines.len().max(1) as u64);
        let mut colors: Vec<(String, u64)> = Vec::new();
        for statistics in engines {
            let total = statistics.total();
            self.faults += number(total.faults) / clones;
            self.late += number(total.late) / clones;
            self.prefetched_frames += number(total.prefetched) / clones;
            self.stalled_us += number(total.stalled_ns) / 1e3 / clones;
            self.moved_bytes += number(statistics.bytes()) / clones;
            let longest = statistics.stall(1.0).map(us);
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
                "snapshot while it ran: it stood still for {:.2} ms\n",
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
        for way in &self.ways {
            out.add_row([
                way.name.clone(),
                format!("{:.0}", way.start_us),
                format!("{:.1}", way.took_us / 1e3),
                format!("{:.0}", way.faults),
                format!("{:.0}", way.late),
                format!("{:.0}", way.prefetched_frames),
                format!("{:.1}", way.stalled_us / 1e3),
                way.longest_stall_us.map_or_else(String::new, |us| format!("{us:.0}")),
                format!("{:.1}", mib(way.moved_bytes)),
                format!("{:.1}", mib(way.memory_bytes)),
                if way.is_verified { "all right" } else { "not checked" }.to_owned(),
            ]);
        }
        text.push_str(&finish(&out));
        text
    }
}
