//! The two halves of a connection.

use super::peer::Peer;
use super::socket::{Socket, Timer};
#[cfg(feature = "tls")]
use super::tls::{Incoming, Outgoing};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// A connection to a peer.
///
/// Move each half to its own thread. The connection ends when both halves are dropped.
#[derive(Debug)]
pub struct Link {
    /// The half that sends.
    pub sender: Sender,
    /// The half that receives.
    pub receiver: Receiver,
    /// Identity of the peer.
    pub peer: Peer,
}

/// A link's sending half. Dropping it ends the outgoing stream.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<Socket>,
    /// A send failed midway: the peer could not parse what would follow.
    broken: bool,
    #[cfg(feature = "tls")]
    tls: Option<Outgoing>,
}

/// A link's receiving half.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<Socket>,
    timer: Timer,
    #[cfg(feature = "tls")]
    tls: Option<Incoming>,
}

/// Closes a link from any thread, even while its halves are in use.
#[derive(Clone, Debug)]
pub struct Closer {
    socket: Arc<Socket>,
}

impl Link {
    /// A link over a connected socket.
    pub(super) fn plain(fd: OwnedFd, peer: Peer, send_timeout: Duration) -> io::Result<Self> {
        Ok(Self::over(Arc::new(Socket::new(fd, send_timeout)?), peer))
    }

    fn over(socket: Arc<Socket>, peer: Peer) -> Self {
        let sender = Sender {
            socket: Arc::clone(&socket),
            broken: false,
            #[cfg(feature = "tls")]
            tls: None,
        };
        let receiver = Receiver {
            socket,
            timer: Timer::default(),
            #[cfg(feature = "tls")]
            tls: None,
        };
        Self { sender, receiver, peer }
    }

    /// A link over a socket and the TLS session on it.
    #[cfg(feature = "tls")]
    pub(super) fn tls(socket: Arc<Socket>, halves: (Outgoing, Incoming), peer: Peer) -> Self {
        let mut link = Self::over(socket, peer);
        link.sender.tls = Some(halves.0);
        link.receiver.tls = Some(halves.1);
        link
    }

    /// Two ends of a connection inside this process, with a send timeout of ten seconds.
    ///
    /// # Errors
    /// [`io::Error`] if the sockets cannot be created.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let send_timeout = super::options::SEND_TIMEOUT;
        let end = |fd: OwnedFd| Self::plain(fd.try_clone()?, Peer::of_unix(&fd)?, send_timeout);
        Ok((end(a)?, end(b)?))
    }

    /// A handle that closes this link from another thread.
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer { socket: Arc::clone(&self.sender.socket) }
    }
}

impl Sender {
    /// Sends all bytes of all parts, in order. The parts are consumed.
    ///
    /// The link's send timeout applies to each call: keep the parts of one call below a few
    /// mebibytes, so that a slow network can carry them in time.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if the peer does not take the bytes within the link's send timeout,
    /// or the system's error. Part of the bytes may have been sent by then. The link is closed, and
    /// every later send fails.
    pub fn send(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::new(ErrorKind::BrokenPipe, "an earlier send failed"));
        }
        self.send_all(parts).inspect_err(|_| {
            self.broken = true;
            self.socket.close();
        })
    }

    fn send_all(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.send(&self.socket, parts);
        }
        self.socket.send(parts)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        #[cfg(feature = "tls")]
        if let Some(tls) = self.tls.as_mut().filter(|_| !self.broken) {
            tls.end(&self.socket);
        }
        self.socket.end();
    }
}

impl Receiver {
    /// Receives available bytes, up to the length of `buf`, or waits for some. `None` means that
    /// nothing arrived within `wait` (zero: do not block), `Some(0)` that the peer has ended its
    /// stream.
    ///
    /// Calls with an unchanged `wait` take one system call each.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `buf` is empty. With TLS, [`ErrorKind::InvalidData`] if the
    /// bytes fail authentication, and [`ErrorKind::UnexpectedEof`] if the stream ends without the
    /// peer's close message. Otherwise the system's error.
    pub fn receive(&mut self, buf: &mut [u8], wait: Duration) -> io::Result<Option<usize>> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.receive(&self.socket, buf, wait, &mut self.timer);
        }
        self.socket.receive(buf, wait, &mut self.timer)
    }
}

impl Closer {
    /// Closes the link for both ends. Threads blocked in it wake up: a receive returns no bytes, a
    /// send an error.
    pub fn close(&self) {
        self.socket.close();
    }
}
