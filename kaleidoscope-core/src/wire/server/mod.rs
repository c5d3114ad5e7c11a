//! Serves snapshot images to many clones.
//!
//! Each connection has a thread, which reads requests, looks the pages up in the image's memory and
//! writes them to the socket from there. What one client does costs others nothing but their share
//! of the processors: memory, frames, connections and time are bounded for each.

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
use connection::End;
use parking_lot::{Condvar, Mutex};
use statistics::{Counters, add};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Stack of a connection's thread, in bytes: it recurses nowhere, and its buffers are on the heap.
const STACK: usize = 256 << 10;

/// How long an accepting thread waits before it looks whether the server is being stopped, and
/// after an error.
const ACCEPT: Duration = Duration::from_millis(100);

/// How long [`Server::stop`] waits for threads that are stuck in reading the image.
const STOP: Duration = Duration::from_secs(5);

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
    open: Mutex<Open>,
    closed: Condvar,
    failure: Mutex<Option<Panicked>>,
    failed: Condvar,
}

/// The connections that are open.
#[derive(Debug, Default)]
struct Open {
    connections: HashMap<u64, Closer>,
    by_peer: HashMap<Share, usize>,
    /// Number of the next connection.
    next: u64,
}

/// Whose share of the connections one counts for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Share {
    User(u32),
    Host(IpAddr),
    PeerIdentity(PeerIdentity),
}

impl Share {
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

    /// Ends the service: none of it goes on without a part of it, and its owner learns why.
    fn fail(&self, error: Panicked) {
        self.stopping.store(true, Ordering::SeqCst);
        self.open.lock().connections.values().for_each(Closer::close);
        self.failure.lock().get_or_insert(error);
        self.failed.notify_all();
    }
}

/// An open connection's place among the connections; freed on drop.
struct Place {
    shared: Arc<Shared>,
    number: u64,
    share: Share,
    /// Whether the server has room for it; if not, it is only told so.
    has_room: bool,
}

impl Place {
    /// A place for one more connection, unless there are so many that they are not even told.
    fn take(shared: &Arc<Shared>, link: &Link) -> Option<Self> {
        let options = &shared.options;
        let share = Share::of(&link.peer);
        let mut open = shared.open.lock();
        // Some more, so that those can be refused; they are gone after the handshake.
        let spare = options.connections / 8 + 4;
        if open.connections.len() >= options.connections.saturating_add(spare) {
            return None;
        }
        let number = open.next;
        open.next += 1;
        open.connections.insert(number, link.closer());
        let of_peer = open.by_peer.entry(share.clone()).or_default();
        *of_peer += 1;
        let has_room = *of_peer <= options.connections_per_peer;
        let has_room = has_room && open.connections.len() <= options.connections;
        Some(Self { shared: Arc::clone(shared), number, share, has_room })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.shared.open.lock();
        open.connections.remove(&self.number);
        if let Some(count) = open.by_peer.get_mut(&self.share) {
            *count -= 1;
            if *count == 0 {
                open.by_peer.remove(&self.share);
            }
        }
        self.shared.closed.notify_all();
    }
}

impl Server {
    /// Serves `images` to whoever connects to one of the `listeners`, from now on.
    ///
    /// # Errors
    /// [`io::Error`] when there is no image, two have one digest, one has a digest of zeros or a
    /// descriptor of more than [`MAX_DESCRIPTOR`] bytes, or the system gives no thread.
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
            let thread = service::spawn("page-accept", STACK, accept, panicked)?;
            server.acceptors.lock().push(thread);
        }
        Ok(server)
    }

    /// Serves one more client, which is connected already.
    ///
    /// # Errors
    /// [`io::Error`] when there are too many connections, or the system gives no thread.
    pub fn attach(&self, link: Link) -> io::Result<()> {
        attach(&self.shared, link)
    }

    /// What the server has done so far.
    #[must_use]
    pub fn statistics(&self) -> ServerStatistics {
        let open = self.shared.open.lock().connections.len();
        let open = u64::try_from(open).unwrap_or(u64::MAX);
        ServerStatistics { open, ..self.shared.counters.snapshot() }
    }

    /// Why the server has ended by itself, if it has: a thread that accepts, or what is told of
    /// [refusals](super::transport::OnRefusal), panicked. It serves nobody any more then. A
    /// panic that is about one client ends that connection, and is
    /// [counted](ServerStatistics::panics).
    #[must_use]
    pub fn failure(&self) -> Option<Panicked> {
        self.shared.failure.lock().clone()
    }

    /// Waits until the server has ended by itself, but no longer than `at_most`; says
    /// [why](Self::failure).
    #[must_use]
    pub fn wait_for_failure(&self, at_most: Duration) -> Option<Panicked> {
        let mut failure = self.shared.failure.lock();
        let is_well = |failure: &mut Option<Panicked>| failure.is_none();
        self.shared.failed.wait_while_for(&mut failure, is_well, at_most);
        failure.clone()
    }

    /// Ends all connections and accepts no more. Returns when their threads have ended, or after
    /// some seconds: one that waits for the image's memory ends when that answers.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let acceptors: Vec<_> = self.acceptors.lock().drain(..).collect();
        for acceptor in acceptors {
            // If it panicked, it has ended, and the reason is kept.
            let _ = acceptor.join();
        }
        let mut open = self.shared.open.lock();
        // Whoever comes after this sees that the server is being stopped before it waits for
        // anything.
        open.connections.values().for_each(Closer::close);
        let is_open = |open: &mut Open| !open.connections.is_empty();
        self.shared.closed.wait_while_for(&mut open, is_open, STOP);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether the images can be served side by side.
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
        match listener.accept(ACCEPT) {
            Ok(None) => {}
            // Those that find no place are counted, and hear nothing.
            Ok(Some(link)) => drop(attach(shared, link)),
            Err(error) => {
                match error.get_ref().and_then(|cause| cause.downcast_ref::<Panicked>()) {
                    Some(panicked) => return shared.fail(panicked.clone()),
                    // Out of file descriptors, mostly: wait until others are closed.
                    None => thread::sleep(ACCEPT),
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
    let Some(place) = Place::take(shared, &link) else {
        return refused(io::Error::new(io::ErrorKind::ResourceBusy, "too many connections"));
    };
    let panicked = {
        let shared = Arc::clone(shared);
        move |_| add(&shared.counters.panics, 1)
    };
    let serve = move || {
        let shared = &place.shared;
        let counters = &shared.counters;
        if place.has_room {
            add(&counters.connections, 1);
        }
        match connection::serve(shared, link, !place.has_room) {
            End::Closed | End::Stopped | End::Image => {}
            End::Refused => add(&counters.refused, 1),
            End::Idle => add(&counters.idle, 1),
            End::Violation => add(&counters.violations, 1),
            End::Broken => add(&counters.broken, 1),
        }
    };
    match service::spawn("page-server", STACK, serve, panicked) {
        Ok(_) => Ok(()),
        Err(error) => refused(error),
    }
}
