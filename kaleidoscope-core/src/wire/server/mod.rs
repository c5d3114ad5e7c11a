//! Serves snapshot images to many clones.
//!
//! Each connection has a thread, which reads requests, looks up the pages in the image's memory and
//! writes them to the socket from there. A client can cost the others no more than its share of
//! the CPUs: memory, frames, connections and time are bounded per client.

mod batch;
mod compression;
mod connection;
mod image;
mod options;
mod pending;
mod statistics;

pub use image::ServedImage;
pub use options::ServerOptions;
pub use statistics::ServerStatistics;

use super::protocol::MAX_DESCRIPTOR;
use super::transport::{Closer, Link, Listener, Peer, PeerIdentity};
use crate::service::{self, Panicked};
use connection::EndReason;
use parking_lot::{Condvar, Mutex};
use statistics::{Counters, add};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Stack of a connection's thread, in bytes. The thread does not recurse, and its buffers are on
/// the heap.
const STACK_BYTES: usize = 256 << 10;

/// How long an accepting thread waits between checks for a stop, and after an error.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(100);

/// How long [`Server::stop`] waits for threads that are blocked in reading the image.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A page server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    acceptors: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    images: Vec<ServedImage>,
    options: ServerOptions,
    counters: Counters,
    stopping: AtomicBool,
    open: Mutex<OpenConnections>,
    closed: Condvar,
    failure: Mutex<Option<Panicked>>,
    failed: Condvar,
}

/// The open connections.
#[derive(Debug, Default)]
struct OpenConnections {
    connections: HashMap<u64, Closer>,
    by_peer: HashMap<PeerKey, usize>,
    /// Number of the next connection.
    next: u64,
}

/// The peer against whose limit a connection counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum PeerKey {
    User(u32),
    Host(IpAddr),
    PeerIdentity(PeerIdentity),
}

impl PeerKey {
    fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Unix { uid, .. } => Self::User(*uid),
            Peer::Tcp { subject: Some(subject), .. } => Self::PeerIdentity(subject.clone()),
            Peer::Tcp { address, subject: None } => Self::Host(address.ip()),
        }
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Ends the service as a whole, and reports `error` to its owner.
    fn fail(&self, error: Panicked) {
        self.stopping.store(true, Ordering::SeqCst);
        self.open.lock().connections.values().for_each(Closer::close);
        self.failure.lock().get_or_insert(error);
        self.failed.notify_all();
    }
}

/// An open connection's slot; freed on drop.
struct ConnectionSlot {
    shared: Arc<Shared>,
    number: u64,
    peer_key: PeerKey,
    /// Whether the connection is within the limits. If not, the client is only refused.
    has_room: bool,
}

impl ConnectionSlot {
    /// Reserves a slot. Returns `None` if there are too many connections even to refuse one more.
    fn take(shared: &Arc<Shared>, link: &Link) -> Option<Self> {
        let options = &shared.options;
        let peer_key = PeerKey::of(&link.peer);
        let mut open = shared.open.lock();
        // Some extra slots, so that clients can be refused; they are freed after the handshake.
        let spare = options.connections / 8 + 4;
        if open.connections.len() >= options.connections.saturating_add(spare) {
            return None;
        }
        let number = open.next;
        open.next += 1;
        open.connections.insert(number, link.closer());
        let of_peer = open.by_peer.entry(peer_key.clone()).or_default();
        *of_peer += 1;
        let has_room = *of_peer <= options.connections_per_peer;
        let has_room = has_room && open.connections.len() <= options.connections;
        Some(Self { shared: Arc::clone(shared), number, peer_key, has_room })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.shared.open.lock();
        open.connections.remove(&self.number);
        if let Some(count) = open.by_peer.get_mut(&self.peer_key) {
            *count -= 1;
            if *count == 0 {
                open.by_peer.remove(&self.peer_key);
            }
        }
        self.shared.closed.notify_all();
    }
}

impl Server {
    /// Starts to serve `images` to clients of the `listeners`.
    ///
    /// # Errors
    /// [`io::Error`] if there is no image, two images have the same digest, a digest is all zeros,
    /// a descriptor is longer than `MAX_DESCRIPTOR` bytes, or a thread cannot be started.
    pub fn start(
        images: Vec<ServedImage>,
        listeners: Vec<Listener>,
        options: ServerOptions,
    ) -> io::Result<Self> {
        check(&images)?;
        let shared = Arc::new(Shared {
            images,
            options: options.bounded(),
            counters: Counters::default(),
            stopping: AtomicBool::new(false),
            open: Mutex::default(),
            closed: Condvar::new(),
            failure: Mutex::new(None),
            failed: Condvar::new(),
        });
        let server = Self { shared: Arc::clone(&shared), acceptors: Mutex::default() };
        for listener in listeners {
            let (accepting, failing) = (Arc::clone(&shared), Arc::clone(&shared));
            let accept = move || accept(&accepting, &listener);
            let panicked = move |error| failing.fail(error);
            let thread = service::spawn("page-accept", STACK_BYTES, accept, panicked)?;
            server.acceptors.lock().push(thread);
        }
        Ok(server)
    }

    /// Serves a client that is already connected.
    ///
    /// # Errors
    /// [`io::Error`] if there are too many connections, or a thread cannot be started.
    pub fn attach(&self, link: Link) -> io::Result<()> {
        attach(&self.shared, link)
    }

    /// Counters of the server so far.
    #[must_use]
    pub fn statistics(&self) -> ServerStatistics {
        let open = self.shared.open.lock().connections.len();
        let open = u64::try_from(open).unwrap_or(u64::MAX);
        ServerStatistics { open, ..self.shared.counters.snapshot() }
    }

    /// Why the server has ended by itself, if it has: an accepting thread or the
    /// [refusal callback](super::transport::OnRefusal) panicked. The server then serves no client
    /// any more. A panic in the thread of a single client ends only that connection, and is
    /// [counted](ServerStatistics::panics).
    #[must_use]
    pub fn failure(&self) -> Option<Panicked> {
        self.shared.failure.lock().clone()
    }

    /// Waits until the server has ended by itself, for `at_most` at the longest. Returns the
    /// [reason](Self::failure).
    #[must_use]
    pub fn wait_for_failure(&self, at_most: Duration) -> Option<Panicked> {
        let mut failure = self.shared.failure.lock();
        let is_well = |failure: &mut Option<Panicked>| failure.is_none();
        self.shared.failed.wait_while_for(&mut failure, is_well, at_most);
        failure.clone()
    }

    /// Ends all connections and accepts no more. Returns when their threads have ended, or after
    /// 5 seconds: a thread that is blocked in reading the image ends when that read returns.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let acceptors: Vec<_> = self.acceptors.lock().drain(..).collect();
        for acceptor in acceptors {
            // A panicked acceptor has ended, and its reason is kept in `failure`.
            let _ = acceptor.join();
        }
        let mut open = self.shared.open.lock();
        // A connection that is added after this sees the stop flag before it waits.
        open.connections.values().for_each(Closer::close);
        let is_open = |open: &mut OpenConnections| !open.connections.is_empty();
        self.shared.closed.wait_while_for(&mut open, is_open, STOP_TIMEOUT);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Checks that the images can be served together.
fn check(images: &[ServedImage]) -> io::Result<()> {
    let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if images.is_empty() {
        return invalid("a server needs an image");
    }
    for (at, image) in images.iter().enumerate() {
        if image.digest == [0; 32] {
            return invalid("an image's digest must not be all zeros");
        }
        if images.iter().take(at).any(|other| other.digest == image.digest) {
            return invalid("two images have the same digest");
        }
        if u32::try_from(image.descriptor.len()).map_or(true, |bytes| bytes > MAX_DESCRIPTOR) {
            return invalid("a descriptor may have 1 GiB at most: leave fingerprints out");
        }
    }
    Ok(())
}

fn accept(shared: &Arc<Shared>, listener: &Listener) {
    while !shared.is_stopping() {
        match listener.accept(ACCEPT_INTERVAL) {
            Ok(None) => {}
            // Connections without a slot are counted, and closed without a reply.
            Ok(Some(link)) => drop(attach(shared, link)),
            Err(error) => {
                match error.get_ref().and_then(|cause| cause.downcast_ref::<Panicked>()) {
                    Some(panicked) => return shared.fail(panicked.clone()),
                    // Most likely out of file descriptors: wait until others are closed.
                    None => thread::sleep(ACCEPT_INTERVAL),
                }
            }
        }
    }
}

fn attach(shared: &Arc<Shared>, link: Link) -> io::Result<()> {
    let refused = |error| {
        add(&shared.counters.refused, 1);
        Err(error)
    };
    let Some(slot) = ConnectionSlot::take(shared, &link) else {
        return refused(io::Error::new(io::ErrorKind::ResourceBusy, "too many connections"));
    };
    let panicked = {
        let shared = Arc::clone(shared);
        move |_| add(&shared.counters.panics, 1)
    };
    let serve = move || {
        let shared = &slot.shared;
        let counters = &shared.counters;
        if slot.has_room {
            add(&counters.connections, 1);
        }
        match connection::serve(shared, link, !slot.has_room) {
            EndReason::Closed | EndReason::Stopped | EndReason::Image => {}
            EndReason::Refused => add(&counters.refused, 1),
            EndReason::Idle => add(&counters.idle, 1),
            EndReason::Violation => add(&counters.violations, 1),
            EndReason::Broken => add(&counters.broken, 1),
        }
    };
    match service::spawn("page-server", STACK_BYTES, serve, panicked) {
        Ok(_) => Ok(()),
        Err(error) => refused(error),
    }
}
