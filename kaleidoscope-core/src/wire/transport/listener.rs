//! The server's side of a connection: listening and accepting.

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
    socket: ListenSocket,
    #[cfg(feature = "tls")]
    handshakes: Option<super::tls::Handshakes>,
    options: ListenOptions,
}

#[derive(Debug)]
enum ListenSocket {
    Unix { listener: UnixListener, file: SocketFile },
    Tcp { listener: TcpListener, address: SocketAddr },
}

impl Listener {
    /// Listens at an address.
    ///
    /// A stale Unix socket file, without a listener, is replaced. With TCP port 0 the system
    /// chooses a port; see [`local_address`](Self::local_address).
    ///
    /// # Errors
    /// [`ListenError`] if listening at the address fails or is not allowed.
    pub fn bind(address: &ServerAddress, options: ListenOptions) -> Result<Self, ListenError> {
        let socket = match address {
            ServerAddress::Unix(path) => {
                let (listener, file) = unix::listen_at(path, &options)?;
                ListenSocket::Unix { listener, file }
            }
            ServerAddress::Tcp(name) => {
                let known = options.tls.is_some();
                let listener = tcp::listen(name, known)?;
                let at = listener.local_addr();
                let failed = |source| ListenError::Io { address: address.to_string(), source };
                ListenSocket::Tcp { listener, address: at.map_err(failed)? }
            }
        };
        #[cfg(feature = "tls")]
        let handshakes = match (&socket, &options.tls) {
            (ListenSocket::Tcp { .. }, Some(tls)) => {
                let failed = |source| ListenError::Io { address: address.to_string(), source };
                Some(super::tls::Handshakes::new(tls, &options).map_err(failed)?)
            }
            (ListenSocket::Tcp { .. }, None) | (ListenSocket::Unix { .. }, _) => None,
        };
        Ok(Self {
            socket,
            #[cfg(feature = "tls")]
            handshakes,
            options,
        })
    }

    /// The address it listens at, with the actual port.
    #[must_use]
    pub fn local_address(&self) -> ServerAddress {
        match &self.socket {
            ListenSocket::Unix { file, .. } => ServerAddress::Unix(file.path().to_owned()),
            ListenSocket::Tcp { address, .. } => ServerAddress::Tcp(address.to_string()),
        }
    }

    /// The next peer that may connect, or `None` if none arrives within `wait` (zero: do not
    /// block). Several threads may wait.
    ///
    /// Peers that may not connect are disconnected and reported to [`ListenOptions::on_refusal`];
    /// the wait continues.
    ///
    /// # Errors
    /// [`io::Error`] if the system lacks resources for a new connection (descriptors, memory). The
    /// listener stays usable: wait a little before the next call. After a
    /// [`Panicked`](crate::service::Panicked) error it does not: the thread of a handshake has
    /// panicked, e.g. in [`ListenOptions::on_refusal`].
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
            let fd = match &self.socket {
                ListenSocket::Unix { listener, .. } => listener.as_fd(),
                ListenSocket::Tcp { listener, .. } => listener.as_fd(),
            };
            let socket = PollFd::from_borrowed_fd(fd, PollFlags::IN);
            #[cfg(feature = "tls")]
            if let Some(handshakes) = &self.handshakes {
                let done = PollFd::from_borrowed_fd(handshakes.as_fd(), PollFlags::IN);
                wait_readable(&mut [socket, done], left)?;
                continue;
            }
            wait_readable(&mut [socket], left)?;
        }
    }

    /// Accepts one queued connection; `None` if the queue is empty or the connection was refused.
    fn accept_at_once(&self) -> io::Result<Option<Link>> {
        let (fd, peer) = match &self.socket {
            ListenSocket::Unix { listener, .. } => {
                let stream = match listener.accept() {
                    Ok((stream, _)) => stream,
                    Err(error) if tcp::is_transient(&error) => return Ok(None),
                    Err(error) => return Err(error),
                };
                unix::prepare(&stream, self.options.unsent)?;
                let peer = Peer::of_unix(&stream)?;
                (OwnedFd::from(stream), peer)
            }
            ListenSocket::Tcp { listener, .. } => match tcp::accept(listener)? {
                Some((stream, address)) => {
                    // An error here concerns this connection only.
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
