//! What the events of all VMMs' handlers have in common.

use super::template::Template;
use crate::map_output::statistics::thousands;
use crate::map_output::table::{heading, printable, size};
use crate::replay::policies::PolicyChoice;
use kaleidoscope_core::clone::{FreeFrames, Statistics};
use kaleidoscope_core::memory::GuestMemory;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// What VMs are served from.
#[derive(Serialize)]
pub(super) struct Offer {
    memory_bytes: u64,
    colored: bool,
    colors: String,
    free_memory: &'static str,
    policy: String,
    #[serde(skip)]
    heading: String,
}

impl Offer {
    pub(super) fn of(template: &Template, policy: &PolicyChoice) -> Self {
        let map = template.guest.locality.map();
        Self {
            memory_bytes: template.image.layout().bytes(),
            colored: template.is_colored,
            colors: template.colors.clone(),
            free_memory: template.free_frames.name(),
            policy: policy.to_string(),
            heading: match template.is_colored {
                true => heading(map),
                false => format!("{}\n", size(map.layout().bytes())),
            },
        }
    }

    /// For people. `what` is served.
    pub(super) fn text(&self, what: &str) -> String {
        let Self { heading, colors, free_memory, policy, .. } = self;
        let may = match *free_memory == FreeFrames::Zero.name() {
            true => "filled with zeros",
            false => "read from the file",
        };
        format!(
            "serving {}: {heading}colors: {}\nfree frames: {may}\npolicy: {policy}",
            printable(what),
            printable(colors),
        )
    }
}

/// What a session has done.
#[derive(Serialize)]
pub(super) struct Work {
    seconds: f64,
    faults: u64,
    late: u64,
    prefetched: u64,
    zeroed: u64,
    moved_bytes: u64,
    resident_frames: u64,
    #[serde(flatten)]
    stall: Stall,
}

impl Work {
    pub(super) fn of(statistics: &Statistics, ran: Duration) -> Self {
        let total = statistics.total();
        Self {
            seconds: ran.as_secs_f64(),
            faults: total.faults,
            late: total.late,
            prefetched: total.prefetched,
            zeroed: total.zero_faults + total.zeroed_ahead,
            moved_bytes: statistics.bytes(),
            resident_frames: total.resident,
            stall: Stall::of(statistics),
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        format!(
            "after {:.1} s: {} faults, {} late, {}, {} read",
            self.seconds,
            thousands(self.faults),
            thousands(self.late),
            self.stall.text(),
            size(self.moved_bytes)
        )
    }
}

/// How long vCPUs waited for pages.
#[derive(Serialize)]
pub(super) struct Stall {
    stalled_us: u64,
    stall_p50_us: Option<f64>,
    stall_p99_us: Option<f64>,
}

impl Stall {
    pub(super) fn of(statistics: &Statistics) -> Self {
        let us = |part| statistics.stall(part).map(|stall| stall.as_secs_f64() * 1e6);
        Self {
            stalled_us: statistics.total().stalled_ns / 1000,
            stall_p50_us: us(0.5),
            stall_p99_us: us(0.99),
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let us = |us: Option<f64>| us.map_or("-".to_owned(), |us| format!("{us:.1} us"));
        format!("stall p50 {}, p99 {}", us(self.stall_p50_us), us(self.stall_p99_us))
    }
}

/// How a VM's session has ended, for people.
pub(super) fn outcome(error: Option<&str>, is_whole: bool) -> String {
    match error {
        Some(error) => printable(error),
        None if is_whole => "has all of its memory and runs on alone".to_owned(),
        None => "has ended".to_owned(),
    }
}

/// An event for programs: one line.
pub(super) fn json(event: &impl Serialize) -> String {
    // Numbers and texts; there is no map with other keys.
    serde_json::to_string(event).unwrap_or_default()
}

/// A path, for events.
pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}
