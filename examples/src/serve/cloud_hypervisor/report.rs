//! What the command says: what is served, when the VM starts, and when it needs no pages any more.

use super::Args;
use crate::map_output::statistics::thousands;
use crate::map_output::table::{heading, printable, size};
use crate::serve::template::Template;
use kaleidoscope_core::clone::{FreeFrames, Statistics};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_kvm::Error;
use kaleidoscope_kvm::cloud_hypervisor::{Ended, Session};
use serde::Serialize;
use std::time::Duration;

/// An event, which is printed as a line of JSON or as text.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    Serving {
        folder: String,
        socket: String,
        frames: u32,
        colored: bool,
        colors: String,
        free_memory: &'static str,
        policy: String,
        #[serde(skip)]
        heading: String,
    },
    Started {
        process: u32,
        start_us: u64,
    },
    /// A signal came while the VM depends on this process.
    Waiting {},
    Ended {
        /// Why, unless the VM has all of its memory or ended by itself.
        error: Option<String>,
        whole: bool,
        seconds: f64,
        faults: u64,
        late: u64,
        prefetched: u64,
        zeroed: u64,
        moved_bytes: u64,
        resident_frames: u64,
        stalled_us: u64,
        stall_p50_us: Option<f64>,
        stall_p99_us: Option<f64>,
    },
}

impl Event {
    /// A clone is to be started.
    pub(super) fn serving(args: &Args, template: &Template) -> Self {
        let map = template.guest.locality.map();
        Self::Serving {
            folder: args.folder.display().to_string(),
            socket: args.socket.display().to_string(),
            frames: template.image.layout().frames(),
            colored: template.is_colored,
            colors: template.colors.clone(),
            free_memory: template.free_frames.name(),
            policy: args.policy.to_string(),
            heading: if template.is_colored {
                heading(map)
            } else {
                format!("{}\n", size(map.layout().bytes()))
            },
        }
    }

    /// The VM runs, or is left paused.
    pub(super) fn started(session: &Session, took: Duration) -> Self {
        let start_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self::Started { process: session.process(), start_us }
    }

    /// No page is asked for any more.
    pub(super) fn ended(
        ended: &Result<Ended, Error>,
        ran: Duration,
        statistics: &Statistics,
    ) -> Self {
        let total = statistics.total();
        let stall = |part| statistics.stall(part).map(|stall| stall.as_secs_f64() * 1e6);
        Self::Ended {
            error: ended.as_ref().err().map(ToString::to_string),
            whole: matches!(ended, Ok(Ended::HasAllMemory)),
            seconds: ran.as_secs_f64(),
            faults: total.faults,
            late: total.late,
            prefetched: total.prefetched,
            zeroed: total.zero_faults + total.zeroed_ahead,
            moved_bytes: statistics.bytes(),
            resident_frames: total.resident,
            stalled_us: total.stalled_ns / 1000,
            stall_p50_us: stall(0.5),
            stall_p99_us: stall(0.99),
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
            Self::Serving { folder, socket, heading, colors, free_memory, policy, .. } => {
                let may = match *free_memory == FreeFrames::Zero.name() {
                    true => "filled with zeros",
                    false => "read from the file",
                };
                format!(
                    "serving {}: {heading}colors: {}\nfree frames: {may}\npolicy: {policy}\n\
                     connecting to {}",
                    printable(folder),
                    printable(colors),
                    printable(socket)
                )
            }
            Self::Started { process, start_us } => {
                format!("VM: process {process}, started after {start_us} us")
            }
            Self::Waiting {} => "the VM depends on this process, which serves it until it has all \
                                 of its memory (a second SIGINT ends its VMM)"
                .to_owned(),
            Self::Ended {
                error,
                whole,
                seconds,
                faults,
                late,
                moved_bytes,
                stall_p50_us,
                stall_p99_us,
                ..
            } => {
                let why = match error {
                    Some(error) => printable(error),
                    None if *whole => "has all of its memory and runs on alone".to_owned(),
                    None => "has ended".to_owned(),
                };
                let us = |us: &Option<f64>| us.map_or("-".to_owned(), |us| format!("{us:.1} us"));
                format!(
                    "VM: {why}; after {seconds:.1} s: {} faults, {} late, stall p50 {}, p99 {}, {} \
                     read",
                    thousands(*faults),
                    thousands(*late),
                    us(stall_p50_us),
                    us(stall_p99_us),
                    size(*moved_bytes)
                )
            }
        }
    }
}
