//! What the handler says: when it serves, when a VM starts, and when one has ended.

use super::Args;
use crate::map_output::statistics::thousands;
use crate::map_output::table::{heading, printable, size};
use crate::serve::template::Template;
use kaleidoscope_core::clone::{FreeFrames, Statistics};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_kvm::firecracker::Handshake;
use kaleidoscope_kvm::memory::PageSize;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// An event, which is printed as a line of JSON or as text.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    Serving {
        memory: String,
        socket: String,
        frames: u32,
        colored: bool,
        colors: String,
        free_memory: &'static str,
        policy: String,
        /// The handler's process.
        handler: u32,
        /// The process that started it: its supervisor's, if it has one.
        parent: u32,
        #[serde(skip)]
        heading: String,
    },
    Started {
        vm: u64,
        process: u32,
        user: u32,
        memory_bytes: u64,
        regions: usize,
        page_bytes: usize,
        start_us: u64,
        /// From a handler that has died.
        taken_over: bool,
    },
    /// A connection that is not served.
    Refused { vm: u64, error: String, vmm_ended: bool },
    Ended {
        vm: u64,
        process: u32,
        /// Why, unless the VM ended by itself.
        error: Option<String>,
        vmm_ended: bool,
        filled: bool,
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
    /// The supervisor had died, and there is another.
    SupervisorReplaced {},
    /// A signal came while VMs depend on this process.
    Waiting { vms: usize },
}

impl Event {
    /// The handler listens.
    pub(super) fn serving(args: &Args, template: &Template, socket: &Path) -> Self {
        let map = template.guest.locality.map();
        Self::Serving {
            memory: args.memory.display().to_string(),
            socket: socket.display().to_string(),
            frames: template.image.layout().frames(),
            colored: template.is_colored,
            colors: template.colors.clone(),
            free_memory: template.free_frames.name(),
            policy: args.policy.to_string(),
            handler: std::process::id(),
            parent: std::os::unix::process::parent_id(),
            heading: if template.is_colored {
                heading(map)
            } else {
                format!("{}\n", size(map.layout().bytes()))
            },
        }
    }

    /// A VM's faults are answered.
    pub(super) fn started(
        vm: u64,
        (process, user): (u32, u32),
        handshake: &Handshake,
        took: Duration,
        taken_over: bool,
    ) -> Self {
        Self::Started {
            vm,
            process,
            user,
            memory_bytes: handshake.bytes(),
            regions: handshake.regions().len(),
            page_bytes: handshake.page_size().bytes(),
            start_us: micros(took),
            taken_over,
        }
    }

    /// A VM is served no more.
    pub(super) fn ended(
        vm: u64,
        process: u32,
        error: Option<String>,
        vmm_ended: bool,
        filled: bool,
        ran: Duration,
        statistics: &Statistics,
    ) -> Self {
        let total = statistics.total();
        let stall = |part| statistics.stall(part).map(|stall| stall.as_secs_f64() * 1e6);
        Self::Ended {
            vm,
            process,
            error,
            vmm_ended,
            filled,
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
            Self::Serving { memory, socket, heading, colors, free_memory, policy, .. } => {
                let may = match *free_memory == FreeFrames::Zero.name() {
                    true => "filled with zeros",
                    false => "read from the file",
                };
                format!(
                    "serving {}: {heading}colors: {}\nfree frames: {may}\npolicy: {policy}\n\
                     listening at {}",
                    printable(memory),
                    printable(colors),
                    printable(socket)
                )
            }
            Self::Started {
                vm,
                process,
                user,
                memory_bytes,
                regions,
                page_bytes,
                start_us,
                taken_over,
            } => {
                let how = if *taken_over { "taken over" } else { "served" };
                let pages = match *page_bytes == PageSize::Huge.bytes() {
                    true => "2 MiB",
                    false => "4 KiB",
                };
                format!(
                    "VM {vm}: process {process} of user {user}, {} in {regions} regions of {pages} \
                     pages, {how} after {start_us} us",
                    size(*memory_bytes)
                )
            }
            Self::Refused { vm, error, vmm_ended } => {
                format!("VM {vm}: {}{}", printable(error), ended(*vmm_ended))
            }
            Self::Ended {
                vm,
                error,
                vmm_ended,
                filled,
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
                    None if *filled => "has all of its memory and runs on alone".to_owned(),
                    None => "has ended".to_owned(),
                };
                let us = |us: &Option<f64>| us.map_or("-".to_owned(), |us| format!("{us:.1} us"));
                format!(
                    "VM {vm}: {why}{}; after {seconds:.1} s: {} faults, {} late, stall p50 {}, p99 \
                     {}, {} read",
                    ended(*vmm_ended),
                    thousands(*faults),
                    thousands(*late),
                    us(stall_p50_us),
                    us(stall_p99_us),
                    size(*moved_bytes)
                )
            }
            Self::SupervisorReplaced {} => "the supervisor had died: another one runs".to_owned(),
            Self::Waiting { vms } => format!(
                "{vms} VMs depend on this process, which serves them until they end; no others \
                 are accepted (a second SIGINT ends their VMMs)"
            ),
        }
    }
}

fn ended(vmm_ended: bool) -> &'static str {
    if vmm_ended { " (its VMM was ended)" } else { "" }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
