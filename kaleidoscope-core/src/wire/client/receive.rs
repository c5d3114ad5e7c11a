//! The receiving thread: receives pages, and reconnects when they stop coming.

use super::connect::Welcomed;
use super::outstanding::{Arrival, Requests};
use super::search::{self, Search, SearchStatus};
use super::statistics::add;
use super::trouble::DisconnectReason;
use super::{Client, ClientOptions, pending};
use crate::clone::ports::{Delivery, SourceError};
use crate::wire::protocol::{ProtocolError, Reply, ReplyLimits, ReplyReader, Violation};
use crate::wire::transport::{Closer, Receiver, Sender};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest single wait for the server, after which timeouts are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Upper limit of the caller's wait: a day.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

/// A receiving thread that did not receive for longer than this (stopped, or starved of CPU time)
/// does not count that time as the server's.
const STALL: Duration = Duration::from_secs(1);

/// State of the receiving thread.
#[derive(Debug)]
pub(super) struct Incoming {
    connection: Option<Connection>,
    search: Option<Search>,
    /// The server to try next.
    next_replica: usize,
    /// How long to wait before trying it.
    pause: Duration,
    /// Why the current or the last connection attempt or connection failed.
    trouble: String,
    /// When pages were last received or waited for.
    last_receive: Instant,
    /// Since when the thread has been receiving without a longer gap.
    receiving_since: Instant,
    /// When the timeouts were last checked.
    timeouts_checked: Instant,
}

#[derive(Debug)]
struct Connection {
    receiver: Receiver,
    closer: Closer,
    replies: ReplyReader,
    replica: usize,
    since: Instant,
    /// When a page last arrived.
    progress: Option<Instant>,
}

impl Connection {
    /// A connection to a server that has welcomed the client, and its sending half.
    fn new(welcomed: Welcomed, options: &ClientOptions) -> (Self, Sender) {
        let Welcomed { replica, sender, receiver, closer, welcome } = welcomed;
        let replies = ReplyReader::new(ReplyLimits::from(&welcome), options.buffer);
        let since = Instant::now();
        (Self { receiver, closer, replies, replica, since, progress: None }, sender)
    }
}

impl Incoming {
    /// The state of a thread with a first connection, and the connection's sending half.
    pub(super) fn new(welcomed: Welcomed, options: &ClientOptions) -> (Self, Sender) {
        let (connection, sender) = Connection::new(welcomed, options);
        let now = Instant::now();
        let incoming = Self {
            next_replica: connection.replica,
            connection: Some(connection),
            search: None,
            pause: Duration::ZERO,
            trouble: String::new(),
            last_receive: now,
            receiving_since: now,
            timeouts_checked: now,
        };
        (incoming, sender)
    }
}

impl Client {
    /// Waits at most `wait` for pages, and delivers those that have arrived.
    pub(super) fn receive_pages(
        &self,
        incoming: &mut Incoming,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let mut now = Instant::now();
        let until = now + wait.min(MAX_WAIT);
        if now.saturating_duration_since(incoming.last_receive) > STALL {
            incoming.receiving_since = now;
        }
        let mut has_received = false;
        loop {
            self.check()?;
            self.refill();
            let Some(connection) = &mut incoming.connection else {
                if !self.reconnect(incoming, until)? && Instant::now() >= until {
                    incoming.last_receive = Instant::now();
                    return Ok(());
                }
                now = Instant::now();
                continue;
            };
            let (frames, result) = self.drain(connection, deliver);
            if frames > 0 {
                connection.progress = Some(now);
                incoming.pause = Duration::ZERO;
            }
            let is_broken = self.is_broken.load(Ordering::Acquire);
            match result {
                Err(trouble) => {
                    self.disconnect(incoming, &trouble);
                    continue;
                }
                Ok(()) if is_broken => {
                    self.disconnect(incoming, &DisconnectReason::Broken);
                    continue;
                }
                Ok(()) => {}
            }
            // Only after a receive: pages that came while this thread was away are not late.
            if (has_received || frames > 0)
                && let Some(trouble) = self.check_timeouts(incoming, now)?
            {
                self.disconnect(incoming, &trouble);
            }
            let left = until.saturating_duration_since(now);
            if frames > 0 || (has_received && left.is_zero()) {
                incoming.last_receive = now;
                return Ok(());
            }
            let Some(connection) = &mut incoming.connection else { continue };
            has_received = true;
            let received =
                connection.receiver.receive(connection.replies.space(), left.min(POLL_INTERVAL));
            now = Instant::now();
            match received {
                Ok(None) => {}
                Ok(Some(0)) => self.disconnect(incoming, &DisconnectReason::Closed),
                Ok(Some(bytes)) => {
                    connection.replies.filled(bytes);
                    add(&self.counters.bytes, u64::try_from(bytes).unwrap_or(0));
                }
                Err(error) => self.disconnect(incoming, &DisconnectReason::Io(error)),
            }
        }
    }

    /// Sends requests from the backlog.
    fn refill(&self) {
        if !self.outstanding.lock().has_backlog() {
            return;
        }
        // The lock's holder may be blocked on a server that waits for this thread to read, so do
        // not wait for the lock.
        if let Some(mut outgoing) = self.outgoing.try_lock() {
            let mut requests = Requests::new();
            self.outstanding.lock().refill(&mut requests);
            self.write(&mut outgoing, requests);
        }
    }

    /// Delivers the pages in the buffer. Returns their number.
    fn drain(
        &self,
        connection: &mut Connection,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> (u64, Result<(), DisconnectReason>) {
        let (mut frames, mut zero, mut unavailable, mut second) = (0, 0, 0, 0);
        let result = loop {
            let offset = connection.replies.offset();
            let error =
                |violation| Err(DisconnectReason::Protocol(ProtocolError { offset, violation }));
            let delivery = match connection.replies.next_reply() {
                Ok(Some(Reply::Frame(delivery))) => delivery,
                Ok(Some(Reply::Descriptor { .. })) => break error(Violation::Unexpected),
                Ok(Some(Reply::Error { code, text })) => {
                    break Err(DisconnectReason::Ended(code, text.escape_debug().to_string()));
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            };
            let frame = delivery.frame();
            // A statement of its own, so that the lock is released: `deliver` may request more.
            let arrival = self.outstanding.lock().arrived(frame);
            match arrival {
                Arrival::Awaited => {
                    frames += 1;
                    match delivery {
                        Delivery::Page(..) => {}
                        Delivery::Zero(_) => zero += 1,
                        Delivery::Unavailable(_) => unavailable += 1,
                    }
                    deliver(delivery);
                }
                Arrival::SecondCopy => second += 1,
                Arrival::Repeated => break error(Violation::Repeated { frame }),
                Arrival::NotAskedFor => break error(Violation::NotAskedFor { frame }),
            }
        };
        add(&self.counters.frames, frames);
        add(&self.counters.zero_frames, zero);
        add(&self.counters.unavailable_frames, unavailable);
        add(&self.counters.second_copies, second);
        (frames, result)
    }

    /// Drops the connection because of `trouble`.
    fn disconnect(&self, incoming: &mut Incoming, trouble: &DisconnectReason) {
        trouble.count(&self.counters);
        let Some(connection) = incoming.connection.take() else { return };
        incoming.trouble = format!("{}: {trouble}", self.dial.name(connection.replica));
        incoming.next_replica = connection.replica + 1;
        // A server that sent pages and then failed may be tried again at once; a server that
        // only welcomes the client may not.
        if connection.progress.is_none() {
            incoming.pause = search::next_pause(incoming.pause, self.options.backoff);
        }
        // Before taking the lock: its holder may be blocked in a send, which fails now.
        connection.closer.close();
        *self.outgoing.lock() = None;
    }

    /// Fails for good if a frame is outstanding for longer than the deadline. Returns a reason to
    /// disconnect if the server is silent.
    fn check_timeouts(
        &self,
        incoming: &mut Incoming,
        now: Instant,
    ) -> Result<Option<DisconnectReason>, SourceError> {
        if now.saturating_duration_since(incoming.timeouts_checked) < POLL_INTERVAL / 2 {
            return Ok(None);
        }
        incoming.timeouts_checked = now;
        let Some(oldest) = self.outstanding.lock().oldest() else { return Ok(None) };
        let oldest = oldest.max(incoming.receiving_since);
        let age = now.saturating_duration_since(oldest);
        if age >= self.options.deadline {
            let reason = format!("a page did not arrive for {} ms", age.as_millis());
            let trouble = &incoming.trouble;
            let trouble = if trouble.is_empty() { "the server is silent" } else { trouble };
            return Err(self.give_up(&format!("{reason}: {trouble}")));
        }
        let Some(connection) = &incoming.connection else { return Ok(None) };
        // Count only the time on this connection.
        let unanswered = now.saturating_duration_since(oldest.max(connection.since));
        let since_page = connection.progress.map(|at| now.saturating_duration_since(at));
        let silence = since_page.map_or(unanswered, |page| page.min(unanswered));
        let is_silent = silence >= self.options.timeout;
        // The server sends other pages, but not this one.
        let is_starved = unanswered >= (self.options.deadline / 2).max(self.options.timeout);
        Ok((is_silent || is_starved).then_some(DisconnectReason::Silent(unanswered)))
    }

    /// Waits until a server is connected and all requests were repeated, or until `until`. Returns
    /// whether a server is connected.
    fn reconnect(&self, incoming: &mut Incoming, until: Instant) -> Result<bool, SourceError> {
        if incoming.search.is_none() {
            // A connection is needed only once a page is requested; the server may have closed the
            // last one as idle.
            let mut outstanding = self.outstanding.lock();
            while outstanding.is_empty() {
                if self.wanted.wait_until(&mut outstanding, until).timed_out() {
                    return Ok(false);
                }
            }
            drop(outstanding);
            let (dial, options) = (Arc::clone(&self.dial), self.options.clone());
            let (first, pause) = (incoming.next_replica, incoming.pause);
            let search = Search::start(dial, options, self.image, first, pause);
            incoming.search = Some(search.map_err(|error| {
                self.give_up(&format!("cannot start a thread to reconnect: {error}"))
            })?);
        }
        let wait = until.saturating_duration_since(Instant::now()).min(POLL_INTERVAL);
        let found = incoming.search.as_ref().map(|search| search.wait(wait));
        match found {
            None => Ok(false),
            Some(SearchStatus::Pending(reason)) => {
                incoming.trouble = reason.unwrap_or_else(|| std::mem::take(&mut incoming.trouble));
                self.check_timeouts(incoming, Instant::now())?;
                Ok(false)
            }
            Some(SearchStatus::Failed(reason)) => {
                incoming.search = None;
                let trouble = &incoming.trouble;
                Err(self.give_up(&format!("{trouble}; no other page server: {reason}")))
            }
            Some(SearchStatus::Server(welcomed)) => {
                incoming.search = None;
                self.resume(incoming, *welcomed);
                Ok(true)
            }
        }
    }

    /// Continues with another server.
    fn resume(&self, incoming: &mut Incoming, welcomed: Welcomed) {
        let most = pending(&welcomed.welcome);
        let (connection, sender) = Connection::new(welcomed, &self.options);
        incoming.connection = Some(connection);
        add(&self.counters.reconnects, 1);
        let mut outgoing = self.outgoing.lock();
        self.is_broken.store(false, Ordering::Release);
        let mut requests = Requests::new();
        self.outstanding.lock().ask_again(most, &mut requests);
        *outgoing = Some(sender);
        self.write(&mut outgoing, requests);
    }
}
