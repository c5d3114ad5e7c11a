//! What the handler says: when it serves, when a VM starts, and when one has ended.

use super::Args;
use crate::map_output::table::{printable, size};
use crate::serve::event::{Offer, Work, outcome, shown};
use crate::serve::template::Template;
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
        #[serde(flatten)]
        offer: Offer,
        /// The handler's process.
        handler: u32,
        /// The process that started it: its supervisor's, if it has one.
        parent: u32,
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
        #[serde(flatten)]
        work: Work,
    },
    /// The supervisor had died, and there is another.
    SupervisorReplaced {},
    /// A signal came while VMs depend on this process.
    Waiting { vms: usize },
}

impl Event {
    /// The handler listens.
    pub(super) fn serving(args: &Args, template: &Template, socket: &Path) -> Self {
        Self::Serving {
            memory: shown(&args.memory),
            socket: shown(socket),
            offer: Offer::of(template, &args.policy),
            handler: std::process::id(),
            parent: std::os::unix::process::parent_id(),
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

    /// For people: without the end of the last line.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Serving { memory, socket, offer, .. } => {
                format!("{}\nlistening at {}", offer.text(memory), printable(socket))
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
            Self::Ended { vm, error, vmm_ended, filled, work, .. } => format!(
                "VM {vm}: {}{}; {}",
                outcome(error.as_deref(), *filled),
                ended(*vmm_ended),
                work.text()
            ),
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
