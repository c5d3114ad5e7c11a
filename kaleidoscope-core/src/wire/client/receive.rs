//! The receiving thread's part: pages in, and another server when they stop coming.

use super::connect::Welcomed;
use super::outstanding::{Arrival, Requests};
use super::search::{self, Found, Search};
use super::statistics::add;
use super::trouble::Trouble;
use super::{Client, ClientOptions, pending};
use crate::clone::ports::{Delivery, SourceError};
use crate::wire::protocol::{ProtocolError, Reply, ReplyLimits, ReplyReader, Violation};
use crate::wire::transport::{Closer, Receiver, Sender};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the receiving thread waits for its server before it looks around.
const TICK: Duration = Duration::from_millis(50);

/// Longer than anybody waits: a day.
const LONG: Duration = Duration::from_secs(86_400);

/// A receiving thread that was elsewhere for longer than this (stopped, or very busy) does not
/// blame its server for that time.
const AWAY: Duration = Duration::from_secs(1);

/// What the receiving thread has.
#[derive(Debug)]
pub(super) struct Incoming {
    connection: Option<Connection>,
    search: Option<Search>,
    /// The server to try next.
    next_replica: usize,
    /// How long to wait before that.
    pause: Duration,
    /// Why there is no connection, or why there was none.
    trouble: String,
    /// When it looked for pages last.
    looked: Instant,
    /// Since when it has been looking for pages without being away.
    listening: Instant,
    /// When the servers' silence was judged last.
    judged: Instant,
}

#[derive(Debug)]
struct Connection {
    receiver: Receiver,
    closer: Closer,
    replies: ReplyReader,
    replica: usize,
    since: Instant,
    /// When a page arrived last.
    progress: Option<Instant>,
}

impl Connection {
    /// A connection to a server that has welcomed the client, and the way to that server.
    fn new(welcomed: Welcomed, options: &ClientOptions) -> (Self, Sender) {
        let Welcomed { replica, sender, receiver, closer, welcome } = welcomed;
        let replies = ReplyReader::new(ReplyLimits::from(&welcome), options.buffer);
        let since = Instant::now();
        (Self { receiver, closer, replies, replica, since, progress: None }, sender)
    }
}

impl Incoming {
    /// Connected to a first server, to which there is a way.
    pub(super) fn new(welcomed: Welcomed, options: &ClientOptions) -> (Self, Sender) {
        let (connection, sender) = Connection::new(welcomed, options);
        let now = Instant::now();
        let incoming = Self {
            next_replica: connection.replica,
            connection: Some(connection),
            search: None,
            pause: Duration::ZERO,
            trouble: String::new(),
            looked: now,
            listening: now,
            judged: now,
        };
        (incoming, sender)
    }
}

impl Client {
    /// Waits for pages until `wait` is over, and hands over those that have come.
    pub(super) fn receive_pages(
        &self,
        incoming: &mut Incoming,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let mut now = Instant::now();
        let until = now + wait.min(LONG);
        if now.saturating_duration_since(incoming.looked) > AWAY {
            incoming.listening = now;
        }
        let mut has_looked = false;
        loop {
            self.check()?;
            self.refill();
            let Some(connection) = &mut incoming.connection else {
                if !self.reconnect(incoming, until)? && Instant::now() >= until {
                    incoming.looked = Instant::now();
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
                    self.disconnect(incoming, &Trouble::Broken);
                    continue;
                }
                Ok(()) => {}
            }
            // Only after a look: what came while this thread was away is not late.
            if (has_looked || frames > 0)
                && let Some(trouble) = self.judge(incoming, now)?
            {
                self.disconnect(incoming, &trouble);
            }
            let left = until.saturating_duration_since(now);
            if frames > 0 || (has_looked && left.is_zero()) {
                incoming.looked = now;
                return Ok(());
            }
            let Some(connection) = &mut incoming.connection else { continue };
            has_looked = true;
            let received = connection.receiver.receive(connection.replies.space(), left.min(TICK));
            now = Instant::now();
            match received {
                Ok(None) => {}
                Ok(Some(0)) => self.disconnect(incoming, &Trouble::Closed),
                Ok(Some(bytes)) => {
                    connection.replies.filled(bytes);
                    add(&self.counters.bytes, u64::try_from(bytes).unwrap_or(0));
                }
                Err(error) => self.disconnect(incoming, &Trouble::Io(error)),
            }
        }
    }

    /// Asks for frames for which there was no room before.
    fn refill(&self) {
        if !self.outstanding.lock().has_backlog() {
            return;
        }
        // Somebody who is writing may be waiting for a server that waits for this thread to read:
        // come back later.
        if let Some(mut outgoing) = self.outgoing.try_lock() {
            let mut requests = Requests::new();
            self.outstanding.lock().refill(&mut requests);
            self.write(&mut outgoing, requests);
        }
    }

    /// Hands over what has arrived and was not looked at. Says how many frames that were.
    fn drain(
        &self,
        connection: &mut Connection,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> (u64, Result<(), Trouble>) {
        let (mut frames, mut zero, mut unavailable, mut second) = (0, 0, 0, 0);
        let result = loop {
            let offset = connection.replies.offset();
            let error = |violation| Err(Trouble::Protocol(ProtocolError { offset, violation }));
            let delivery = match connection.replies.next_reply() {
                Ok(Some(Reply::Frame(delivery))) => delivery,
                Ok(Some(Reply::Descriptor { .. })) => break error(Violation::Unexpected),
                Ok(Some(Reply::Error { code, text })) => {
                    break Err(Trouble::Ended(code, text.escape_debug().to_string()));
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            };
            let frame = delivery.frame();
            // In a statement of its own: `deliver` may ask for more.
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

    /// Gives up the connection, because of `trouble`.
    fn disconnect(&self, incoming: &mut Incoming, trouble: &Trouble) {
        trouble.count(&self.counters);
        let Some(connection) = incoming.connection.take() else { return };
        incoming.trouble = format!("{}: {trouble}", self.dial.name(connection.replica));
        incoming.next_replica = connection.replica + 1;
        // A server that sent pages and then failed may be asked again at once; one that only
        // welcomes may not.
        if connection.progress.is_none() {
            incoming.pause = search::next_pause(incoming.pause, self.options.backoff);
        }
        // Before the lock: whoever holds it may be sending on this connection, and fails now.
        connection.closer.close();
        *self.outgoing.lock() = None;
    }

    /// Gives up for good when a frame was not answered in time; finds out whether the server has
    /// fallen silent.
    fn judge(&self, incoming: &mut Incoming, now: Instant) -> Result<Option<Trouble>, SourceError> {
        if now.saturating_duration_since(incoming.judged) < TICK / 2 {
            return Ok(None);
        }
        incoming.judged = now;
        let Some(oldest) = self.outstanding.lock().oldest() else { return Ok(None) };
        let oldest = oldest.max(incoming.listening);
        let age = now.saturating_duration_since(oldest);
        if age >= self.options.deadline {
            let reason = format!("a page did not come for {} ms", age.as_millis());
            let trouble = &incoming.trouble;
            let trouble = if trouble.is_empty() { "the server is silent" } else { trouble };
            return Err(self.give_up(&format!("{reason}: {trouble}")));
        }
        let Some(connection) = &incoming.connection else { return Ok(None) };
        // As long as it was this server's turn.
        let unanswered = now.saturating_duration_since(oldest.max(connection.since));
        let since_page = connection.progress.map(|at| now.saturating_duration_since(at));
        let silence = since_page.map_or(unanswered, |page| page.min(unanswered));
        let is_silent = silence >= self.options.timeout;
        // It sends others, but not this one.
        let is_starved = unanswered >= (self.options.deadline / 2).max(self.options.timeout);
        Ok((is_silent || is_starved).then_some(Trouble::Silent(unanswered)))
    }

    /// Without a connection: waits until there is one and everything was asked for again, or until
    /// `until`. Says whether there is one.
    fn reconnect(&self, incoming: &mut Incoming, until: Instant) -> Result<bool, SourceError> {
        if incoming.search.is_none() {
            // A connection is only needed once something is wanted; the server may have closed the
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
                self.give_up(&format!("the system gives no thread to reconnect with: {error}"))
            })?);
        }
        let wait = until.saturating_duration_since(Instant::now()).min(TICK);
        let found = incoming.search.as_ref().map(|search| search.wait(wait));
        match found {
            None => Ok(false),
            Some(Found::NotYet(reason)) => {
                incoming.trouble = reason.unwrap_or_else(|| std::mem::take(&mut incoming.trouble));
                self.judge(incoming, Instant::now())?;
                Ok(false)
            }
            Some(Found::Never(reason)) => {
                incoming.search = None;
                let trouble = &incoming.trouble;
                Err(self.give_up(&format!("{trouble}; no other page server: {reason}")))
            }
            Some(Found::Server(welcomed)) => {
                incoming.search = None;
                self.resume(incoming, *welcomed);
                Ok(true)
            }
        }
    }

    /// Goes on with another server.
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
