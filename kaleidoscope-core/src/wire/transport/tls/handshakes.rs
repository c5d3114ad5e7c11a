//! TLS handshakes that run in parallel to accepting.

use super::super::link::Link;
use super::super::options::{ListenOptions, Refusal};
use super::super::peer::Peer;
use super::super::socket::Socket;
use super::sides::ServerTls;
use crate::service::{self, Panicked};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// Most concurrent handshakes. One more cancels the oldest: a handshake takes milliseconds, so the
/// oldest of this many is most likely stalled.
const MAX_HANDSHAKES: usize = 64;

/// Stack of a handshake's thread, in bytes.
const STACK: usize = 1 << 20;

/// Running handshakes, each on a thread of its own, and finished links.
pub(crate) struct Handshakes {
    tls: ServerTls,
    shared: Arc<Shared>,
}

struct Shared {
    options: ListenOptions,
    state: Mutex<State>,
    /// Readable while finished links are queued.
    ready: OwnedFd,
}

#[derive(Default)]
struct State {
    started: u64,
    running: BTreeMap<u64, Arc<Socket>>,
    done: VecDeque<Link>,
    panic: Option<Panicked>,
}

impl fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Handshakes")
            .field("running", &state.running.len())
            .field("done", &state.done.len())
            .finish()
    }
}

impl AsFd for Handshakes {
    /// Readable while finished links are queued.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }
}

impl Handshakes {
    pub(in super::super) fn new(tls: &ServerTls, options: &ListenOptions) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
        let shared =
            Shared { options: options.clone(), state: Mutex::default(), ready: eventfd(0, flags)? };
        Ok(Self { tls: tls.clone(), shared: Arc::new(shared) })
    }

    /// A link whose handshake has finished.
    ///
    /// # Errors
    /// [`Panicked`] after the thread of a handshake has panicked, also in later calls.
    pub(in super::super) fn done(&self) -> Result<Option<Link>, Panicked> {
        let mut state = self.shared.state.lock();
        if let Some(error) = &state.panic {
            return Err(error.clone());
        }
        let Some(link) = state.done.pop_front() else { return Ok(None) };
        // The semaphore counts one unit per link, so it stays readable for the others.
        let _ = rustix::io::read(&self.shared.ready, &mut [0; 8]);
        Ok(Some(link))
    }

    /// Starts the handshake of an accepted connection.
    pub(in super::super) fn start(&self, fd: OwnedFd, peer: Peer) {
        let shared = &self.shared;
        let Peer::Tcp { address, .. } = peer else { return };
        let socket = match Socket::new(fd, shared.options.send_timeout) {
            Ok(socket) => Arc::new(socket),
            Err(error) => return shared.options.refuse(&Refusal::Broken(peer, error)),
        };
        let (number, oldest) = {
            let mut state = shared.state.lock();
            let number = state.started;
            state.started += 1;
            state.running.insert(number, Arc::clone(&socket));
            let crowded = state.running.len() > MAX_HANDSHAKES;
            (number, if crowded { state.running.pop_first() } else { None })
        };
        if let Some((_, oldest)) = oldest {
            oldest.close();
        }
        let deadline = Instant::now() + shared.options.handshake;
        let (tls, thread_shared) = (self.tls.clone(), Arc::clone(shared));
        let run = move || {
            let shared = thread_shared;
            let link = tls.accept(socket, address, deadline);
            let mut state = shared.state.lock();
            state.running.remove(&number);
            match link {
                Ok(link) => {
                    state.done.push_back(link);
                    let _ = rustix::io::write(&shared.ready, bytemuck::bytes_of(&1u64));
                }
                Err(error) => {
                    drop(state);
                    let peer = Peer::Tcp { address, subject: None };
                    shared.options.refuse(&Refusal::Handshake(peer, error));
                }
            }
        };
        let panic_shared = Arc::clone(shared);
        let panicked = move |error| {
            let mut state = panic_shared.state.lock();
            state.running.remove(&number);
            state.panic.get_or_insert(error);
            let _ = rustix::io::write(&panic_shared.ready, bytemuck::bytes_of(&1u64));
        };
        if let Err(error) = service::spawn("tls handshake", STACK, run, panicked) {
            shared.state.lock().running.remove(&number);
            shared.options.refuse(&Refusal::Broken(peer, error));
        }
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        for socket in self.shared.state.lock().running.values() {
            socket.close();
        }
    }
}
