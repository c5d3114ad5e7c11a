//! Handshakes that are going on beside accepting.

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

/// Handshakes at a time. One more ends the oldest: a handshake takes milliseconds, so that the
/// oldest of so many is one that does not go on.
const MOST: usize = 64;

/// Stack of a handshake's thread, in bytes.
const STACK: usize = 1 << 20;

/// Handshakes that are going on, each on a thread of its own, and links that are ready.
pub(crate) struct Handshakes {
    tls: ServerTls,
    shared: Arc<Shared>,
}

struct Shared {
    options: ListenOptions,
    state: Mutex<State>,
    /// Readable while links are ready.
    ready: OwnedFd,
}

#[derive(Default)]
struct State {
    started: u64,
    going_on: BTreeMap<u64, Arc<Socket>>,
    done: VecDeque<Link>,
    broken: Option<Panicked>,
}

impl fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Handshakes")
            .field("going_on", &state.going_on.len())
            .field("done", &state.done.len())
            .finish()
    }
}

impl AsFd for Handshakes {
    /// Readable while links are ready.
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

    /// A link that is ready.
    ///
    /// # Errors
    /// [`Panicked`], from then on, when the thread of a handshake has panicked.
    pub(in super::super) fn done(&self) -> Result<Option<Link>, Panicked> {
        let mut state = self.shared.state.lock();
        if let Some(error) = &state.broken {
            return Err(error.clone());
        }
        let Some(link) = state.done.pop_front() else { return Ok(None) };
        // One unit per link: the descriptor stays readable for the others.
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
            state.going_on.insert(number, Arc::clone(&socket));
            let crowded = state.going_on.len() > MOST;
            (number, if crowded { state.going_on.pop_first() } else { None })
        };
        if let Some((_, oldest)) = oldest {
            oldest.close();
        }
        let deadline = Instant::now() + shared.options.handshake;
        let (tls, of_thread) = (self.tls.clone(), Arc::clone(shared));
        let run = move || {
            let shared = of_thread;
            let link = tls.accept(socket, address, deadline);
            let mut state = shared.state.lock();
            state.going_on.remove(&number);
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
        let of_panic = Arc::clone(shared);
        let panicked = move |error| {
            let mut state = of_panic.state.lock();
            state.going_on.remove(&number);
            state.broken.get_or_insert(error);
            let _ = rustix::io::write(&of_panic.ready, bytemuck::bytes_of(&1u64));
        };
        if let Err(error) = service::spawn("tls handshake", STACK, run, panicked) {
            shared.state.lock().going_on.remove(&number);
            shared.options.refuse(&Refusal::Broken(peer, error));
        }
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        for socket in self.shared.state.lock().going_on.values() {
            socket.close();
        }
    }
}
