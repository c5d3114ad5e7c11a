//! What the command says: what is served, when the VM starts, and when it needs no pages any more.

use super::Args;
use crate::map_output::table::printable;
use crate::serve::event::{Offer, Work, outcome, shown};
use crate::serve::template::Template;
use kaleidoscope_core::clone::Statistics;
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
        #[serde(flatten)]
        offer: Offer,
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
        #[serde(flatten)]
        work: Work,
    },
}

impl Event {
    /// A clone is to be started.
    pub(super) fn serving(args: &Args, template: &Template) -> Self {
        Self::Serving {
            folder: shown(&args.folder),
            socket: shown(&args.socket),
            offer: Offer::of(template, &args.policy),
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
        Self::Ended {
            error: ended.as_ref().err().map(ToString::to_string),
            whole: matches!(ended, Ok(Ended::HasAllMemory)),
            work: Work::of(statistics, ran),
        }
    }

    /// For people: without the end of the last line.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Serving { folder, socket, offer } => {
                format!("{}\nconnecting to {}", offer.text(folder), printable(socket))
            }
            Self::Started { process, start_us } => {
                format!("VM: process {process}, started after {start_us} us")
            }
            Self::Waiting {} => "the VM depends on this process, which serves it until it has all \
                                 of its memory (a second SIGINT ends its VMM)"
                .to_owned(),
            Self::Ended { error, whole, work } => {
                format!("VM: {}; {}", outcome(error.as_deref(), *whole), work.text())
            }
        }
    }
}
