//! What is printed: when VMs are served, and when one has its memory.

use super::Args;
use super::template::Template;
use super::vm::Outcome;
use crate::map_output::statistics::thousands;
use crate::map_output::table::{printable, size};
use kaleidoscope_core::clone::FreeFrames;
use kaleidoscope_core::memory::GuestMemory;
use serde::Serialize;
use std::time::Duration;

/// An event, which is printed as a line of JSON or as text.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    Serving {
        image: String,
        memory_bytes: u64,
        colored: bool,
        free_memory: &'static str,
        policy: String,
        vms: usize,
    },
    Ended {
        vm: u32,
        error: Option<String>,
        /// Whether QEMU has all of the memory, and runs on alone.
        complete: bool,
        seconds: f64,
        requests: u64,
        faults: u64,
        late: u64,
        pushed_frames: u64,
        zeroed_frames: u64,
        sent_pages: u64,
        sent_bytes: u64,
        stalled_us: u64,
        stall_p50_us: Option<f64>,
        stall_p99_us: Option<f64>,
    },
    /// A VM that was not served.
    Failed { vm: u32, error: String },
}

impl Event {
    pub(super) fn serving(args: &Args, template: &Template) -> Self {
        Self::Serving {
            image: args.from.display().to_string(),
            memory_bytes: template.image.layout().bytes(),
            colored: template.is_colored,
            free_memory: template.free_frames.name(),
            policy: args.policy.to_string(),
            vms: args.to.len(),
        }
    }

    pub(super) fn failed(vm: u32, error: &str) -> Self {
        Self::Failed { vm, error: error.to_owned() }
    }

    pub(super) fn ended(vm: u32, outcome: &Outcome) -> Self {
        let Outcome { error, is_complete, counts, statistics, ran } = outcome;
        let total = statistics.total();
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        Self::Ended {
            vm,
            error: error.clone(),
            complete: *is_complete,
            seconds: ran.as_secs_f64(),
            requests: counts.requests,
            faults: total.faults,
            late: total.late,
            pushed_frames: total.prefetched + total.zeroed_ahead + total.filled,
            zeroed_frames: counts.zeros,
            sent_pages: counts.pages,
            sent_bytes: counts.bytes,
            stalled_us: total.stalled_ns / 1000,
            stall_p50_us: statistics.stall(0.5).map(us),
            stall_p99_us: statistics.stall(0.99).map(us),
        }
    }

    pub(super) fn is_failure(&self) -> bool {
        match self {
            Self::Serving { .. } => false,
            Self::Ended { error, .. } => error.is_some(),
            Self::Failed { .. } => true,
        }
    }

    /// For programs: one line.
    pub(super) fn json(&self) -> String {
        // Numbers and texts; there is no map with other keys.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people: without the end of the last line.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Serving { image, memory_bytes, colored, free_memory, policy, vms } => {
                let colors = if *colored { "of colors.kscope" } else { "none" };
                let free = match *free_memory == FreeFrames::Zero.name() {
                    true => "sent as zeros",
                    false => "sent as they are",
                };
                format!(
                    "serving {}: {} to {vms} VMs\ncolors: {colors}\nfree frames: {free}\n\
                     policy: {policy}",
                    printable(image),
                    size(*memory_bytes)
                )
            }
            Self::Failed { vm, error } => format!("VM {vm}: {}", printable(error)),
            Self::Ended {
                vm,
                error,
                complete,
                seconds,
                requests,
                pushed_frames,
                zeroed_frames,
                sent_bytes,
                stall_p50_us,
                stall_p99_us,
                ..
            } => {
                let how = match error {
                    Some(error) => printable(error),
                    None if *complete => "has all of its memory and runs on alone".to_owned(),
                    None => "has ended".to_owned(),
                };
                let us = |us: &Option<f64>| us.map_or("-".to_owned(), |us| format!("{us:.1} us"));
                format!(
                    "VM {vm}: {how}; after {seconds:.1} s: {} requests, {} frames pushed, {} zeros, \
                     {} sent, stall p50 {}, p99 {}",
                    thousands(*requests),
                    thousands(*pushed_frames),
                    thousands(*zeroed_frames),
                    size(*sent_bytes),
                    us(stall_p50_us),
                    us(stall_p99_us)
                )
            }
        }
    }
}
