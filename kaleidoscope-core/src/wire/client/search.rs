//! Looks for a server in the background, so that nobody who asks for pages waits for that.

use super::connect::{ConnectError, Image, Welcomed, connect};
use super::{ClientOptions, Connector};
use crate::service::{self, Panicked};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Stack of the thread that looks, in bytes.
const STACK: usize = 2 << 20;

/// The first pause between two rounds; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Tries every server once, from `first` on.
///
/// Returns the one that welcomed the client, or why none did and whether trying again is of no use.
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

/// A search under way. Dropping it ends it after the attempt that is being made.
#[derive(Debug)]
pub(super) struct Search {
    /// Why the last round failed, or the server that was found.
    news: Receiver<Result<Welcomed, (String, bool)>>,
    /// Only there to be dropped.
    _stop: Sender<()>,
}

/// What a search has come to.
#[derive(Debug)]
pub(super) enum Found {
    /// A server.
    Server(Box<Welcomed>),
    /// Nothing so far; the last round failed for this reason.
    NotYet(Option<String>),
    /// Nothing ever, for this reason.
    Never(String),
}

impl Search {
    /// Starts looking, from the server number `first` on, after a pause.
    pub(super) fn start(
        dial: Arc<dyn Connector>,
        options: ClientOptions,
        image: Image,
        first: usize,
        mut pause: Duration,
    ) -> io::Result<Self> {
        let (say, news) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let tell = say.clone();
        let search = move || {
            let start = Instant::now();
            loop {
                if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                let result = round(&*dial, &options, Some(image), first);
                let is_over = !matches!(result, Err((_, false)));
                let is_heard = say.send(result).is_ok();
                // Whoever waits gives up at the deadline of what it waits for; this is only so that
                // it ends in any case.
                if is_over || !is_heard || start.elapsed() > options.deadline {
                    return;
                }
                pause = next_pause(pause, options.backoff);
            }
        };
        // How servers are reached may be the embedder's code.
        let panicked = move |error: Panicked| drop(tell.send(Err((error.to_string(), true))));
        service::spawn("page-search", STACK, search, panicked)?;
        Ok(Self { news, _stop: stop })
    }

    /// Waits for news.
    pub(super) fn wait(&self, wait: Duration) -> Found {
        match self.news.recv_timeout(wait) {
            Ok(Ok(welcomed)) => Found::Server(Box::new(welcomed)),
            Ok(Err((reason, true))) => Found::Never(reason),
            Ok(Err((reason, false))) => Found::NotYet(Some(reason)),
            Err(RecvTimeoutError::Timeout) => Found::NotYet(None),
            Err(RecvTimeoutError::Disconnected) => {
                Found::Never("no server was found in time".into())
            }
        }
    }
}

/// The pause after a round that followed `pause`.
pub(super) fn next_pause(pause: Duration, most: Duration) -> Duration {
    pause.saturating_mul(2).max(FIRST_PAUSE).min(most)
}
