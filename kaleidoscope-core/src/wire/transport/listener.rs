//! The server's side: listening and accepting.

use super::link::Link;
use super::options::{ListenError, ListenOptions, Refusal};
use super::peer::Peer;
use super::socket::wait_readable;
use super::unix::SocketFile;
use super::{tcp, unix};
use crate::clone::ServerAddress;
use rustix::event::{PollFd, PollFlags};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

/// Accepts connections at an address. A Unix socket's file is removed on drop.
#[derive(Debug)]
pub struct Listener {
    door: Door,
    #[cfg(feature = "tls")]
    handshakes: Option<super::tls::Handshakes>,
    options: ListenOptions,
}

#[derive(Debug)]
enum Door {
    Unix { listener: UnixListener, file: SocketFile },
    Tcp { listener: TcpListener, address: SocketAddr },
}

impl Listener {
    /// Listens at an address.
    ///
    /// A Unix socket's file that nobody listens at is replaced. TCP port 0 lets the system choose
    /// one; see [`local_address`](Self::local_address).
    ///
    /// # Errors
    /// [`ListenError`] when the address cannot be listened at, or must not be.
    pub fn bind(address: &ServerAddress, options: ListenOptions) -> Result<Self, ListenError> {
        let door = match address {
            ServerAddress::Unix(path) => {
                let (listener, file) = unix::listen_at(path, &options)?;
                Door::Unix { listener, file }
            }
            ServerAddress::Tcp(name) => {
                #[cfg(feature = "tls")]
                let known = options.tls.is_some();
                #[cfg(not(feature = "tls"))]
                let known = false;
                let listener = tcp::listen(name, known)?;
                let at = listener.local_addr();
                let failed = |source| ListenError::Io { address: address.to_string(), source };
                Door::Tcp { listener, address: at.map_err(failed)? }
            }
        };
        #[cfg(feature = "tls")]
        let handshakes = match (&door, &options.tls) {
            (Door::Tcp { .. }, Some(tls)) => {
                let failed = |source| ListenError::Io { address: address.to_string(), source };
                Some(super::tls::Handshakes::new(tls, &options).map_err(failed)?)
            }
            (Door::Tcp { .. }, None) | (Door::Unix { .. }, _) => None,
        };
        Ok(Self {
            door,
            #[cfg(feature = "tls")]
            handshakes,
            options,
        })
    }

    /// Where it listens: the port is the true one.
    #[must_use]
    pub fn local_address(&self) -> ServerAddress {
        match &self.door {
            Door::Unix { file, .. } => ServerAddress::Unix(file.path().to_owned()),
            Door::Tcp { address, .. } => ServerAddress::Tcp(address.to_string()),
        }
    }

    /// The next peer that may connect, or `None` when none came for `wait` (zero: none is there
    /// now). Several threads may wait.
    ///
    /// Peers that may not connect are cut off and told to [`ListenOptions::on_refusal`]; the wait
    /// goes on.
    ///
    /// # Errors
    /// [`io::Error`] when the system lacks something for a new connection (descriptors, memory).
    /// The listener stays usable: wait a little before the next call. It does not when the
    /// error is a [`Panicked`](crate::service::Panicked): the thread of a handshake has panicked,
    /// in [`ListenOptions::on_refusal`] say.
    pub fn accept(&self, wait: Duration) -> io::Result<Option<Link>> {
        let start = Instant::now();
        loop {
            #[cfg(feature = "tls")]
            if let Some(handshakes) = &self.handshakes
                && let Some(link) = handshakes.done().map_err(io::Error::other)?
            {
                return Ok(Some(link));
            }
            if let Some(link) = self.accept_at_once()? {
                return Ok(Some(link));
            }
            let left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let fd = match &self.door {
                Door::Unix { listener, .. } => listener.as_fd(),
                Door::Tcp { listener, .. } => listener.as_fd(),
            };
            let door = PollFd::from_borrowed_fd(fd, PollFlags::IN);
            #[cfg(feature = "tls")]
            if let Some(handshakes) = &self.handshakes {
                let done = PollFd::from_borrowed_fd(handshakes.as_fd(), PollFlags::IN);
                wait_readable(&mut [door, done], left)?;
                continue;
            }
            wait_readable(&mut [door], left)?;
        }
    }

    /// Takes one connection from the queue; `None` when it is empty, or the connection was refused.
    fn accept_at_once(&self) -> io::Result<Option<Link>> {
        let (fd, peer) = match &self.door {
            Door::Unix { listener, .. } => {
                let stream = match listener.accept() {
                    Ok((stream, _)) => stream,
                    Err(error) if tcp::is_passing(&error) => return Ok(None),
                    Err(error) => return Err(error),
                };
                unix::prepare(&stream, self.options.unsent)?;
                let peer = Peer::of_unix(&stream)?;
                (OwnedFd::from(stream), peer)
            }
            Door::Tcp { listener, .. } => match tcp::accept(listener)? {
                Some((stream, address)) => {
                    // Whatever is wrong with it is this connection's fault alone.
                    let peer = Peer::Tcp { address, subject: None };
                    if let Err(error) =
                        tcp::prepare(&stream, self.options.unsent, self.options.send_timeout)
                    {
                        self.options.refuse(&Refusal::Broken(peer, error));
                        return Ok(None);
                    }
                    (OwnedFd::from(stream), peer)
                }
                None => return Ok(None),
            },
        };
        if !self.options.allows(&peer) {
            self.options.refuse(&Refusal::User(peer));
            return Ok(None);
        }
        #[cfg(feature = "tls")]
        if let Some(handshakes) = &self.handshakes {
            handshakes.start(fd, peer);
            return Ok(None);
        }
        Link::plain(fd, peer, self.options.send_timeout).map(Some)
    }
}
