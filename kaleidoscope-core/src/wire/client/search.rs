//! Searches for a server in the background, so that callers that request pages do not wait for it.

use super::connect::{ConnectError, Image, Welcomed, connect};
use super::{ClientOptions, Connector};
use crate::service::{self, Panicked};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Stack of the searching thread, in bytes.
const STACK: usize = 2 << 20;

/// The first pause between two rounds; each later pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Tries every server once, starting at `first`.
///
/// Returns the connection to the first server that welcomes the client, or why none did and whether
/// the failure is final.
pub(super) fn round(
    dial: &dyn Connector,
    options: &ClientOptions,
    image: Option<Image>,
    first: usize,
) -> Result<Welcomed, (String, bool)> {
    let replicas = dial.replicas();
    let mut reasons = Vec::new();
    let mut all_final = true;
    for offset in 0..replicas {
        let replica = (first % replicas + offset) % replicas;
        match connect(dial, replica, options, image) {
            Ok(welcomed) => return Ok(welcomed),
            Err(error) => {
                all_final &= ConnectError::is_final(&error);
                reasons.push(format!("{}: {error}", dial.name(replica)));
            }
        }
    }
    Err((reasons.join("; "), all_final))
}

/// A running search. Dropping it ends the search after the current attempt.
#[derive(Debug)]
pub(super) struct Search {
    /// Why the last round failed, or the server that was found.
    results: Receiver<Result<Welcomed, (String, bool)>>,
    /// Dropping it stops the searching thread.
    _stop: Sender<()>,
}

/// Status of a search.
#[derive(Debug)]
pub(super) enum SearchStatus {
    /// A server was found.
    Server(Box<Welcomed>),
    /// No server yet; the last round failed for this reason.
    Pending(Option<String>),
    /// The search failed for this reason.
    Failed(String),
}

impl Search {
    /// Starts a search at server number `first`, after a pause.
    pub(super) fn start(
        dial: Arc<dyn Connector>,
        options: ClientOptions,
        image: Image,
        first: usize,
        mut pause: Duration,
    ) -> io::Result<Self> {
        let (results_tx, results) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let panic_tx = results_tx.clone();
        let search = move || {
            let start = Instant::now();
            loop {
                if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                let result = round(&*dial, &options, Some(image), first);
                let is_over = !matches!(result, Err((_, false)));
                let is_received = results_tx.send(result).is_ok();
                // The caller enforces its deadlines itself. This check only guarantees that the
                // thread ends.
                if is_over || !is_received || start.elapsed() > options.deadline {
                    return;
                }
                pause = next_pause(pause, options.backoff);
            }
        };
        // The connector may be the embedder's code.
        let panicked = move |error: Panicked| drop(panic_tx.send(Err((error.to_string(), true))));
        service::spawn("page-search", STACK, search, panicked)?;
        Ok(Self { results, _stop: stop })
    }

    /// Waits at most `wait` for a result.
    pub(super) fn wait(&self, wait: Duration) -> SearchStatus {
        match self.results.recv_timeout(wait) {
            Ok(Ok(welcomed)) => SearchStatus::Server(Box::new(welcomed)),
            Ok(Err((reason, true))) => SearchStatus::Failed(reason),
            Ok(Err((reason, false))) => SearchStatus::Pending(Some(reason)),
            Err(RecvTimeoutError::Timeout) => SearchStatus::Pending(None),
            Err(RecvTimeoutError::Disconnected) => {
                SearchStatus::Failed("no server was found in time".into())
            }
        }
    }
}

/// The pause after a round that followed `pause`, at most `most`.
pub(super) fn next_pause(pause: Duration, most: Duration) -> Duration {
    pause.saturating_mul(2).max(FIRST_PAUSE).min(most)
}
