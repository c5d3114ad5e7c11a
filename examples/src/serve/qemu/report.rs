//! What is printed: when VMs are served, and when one has its memory.

use super::Args;
use super::parent::Parent;
use super::vm::Outcome;
use crate::map_output::statistics::thousands;
use crate::map_output::table::{printable, size};
use crate::serve::event::{Offer, Stall, outcome, shown};
use serde::Serialize;

/// An event, which is printed as a line of JSON or as text.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    Serving {
        image: String,
        #[serde(flatten)]
        offer: Offer,
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
        #[serde(flatten)]
        stall: Stall,
    },
    /// A VM that was not served.
    Failed { vm: u32, error: String },
}

impl Event {
    pub(super) fn serving(args: &Args, parent: &Parent) -> Self {
        Self::Serving {
            image: shown(&args.from),
            offer: Offer::of(&parent.memory, &args.policy),
            vms: args.to.len(),
        }
    }

    pub(super) fn failed(vm: u32, error: &str) -> Self {
        Self::Failed { vm, error: error.to_owned() }
    }

    pub(super) fn ended(vm: u32, outcome: &Outcome) -> Self {
        let Outcome { error, is_complete, counts, statistics, ran } = outcome;
        let total = statistics.total();
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
            stall: Stall::of(statistics),
        }
    }

    pub(super) fn is_failure(&self) -> bool {
        match self {
            Self::Serving { .. } => false,
            Self::Ended { error, .. } => error.is_some(),
            Self::Failed { .. } => true,
        }
    }

    /// For people: without the end of the last line.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Serving { image, offer, vms } => format!("{}\nto {vms} VMs", offer.text(image)),
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
                stall,
                ..
            } => {
                let how = outcome(error.as_deref(), *complete);
                format!(
                    "VM {vm}: {how}; after {seconds:.1} s: {} requests, {} frames pushed, {} zeros, \
                     {} sent, {}",
                    thousands(*requests),
                    thousands(*pushed_frames),
                    thousands(*zeroed_frames),
                    size(*sent_bytes),
                    stall.text()
                )
            }
        }
    }
}
