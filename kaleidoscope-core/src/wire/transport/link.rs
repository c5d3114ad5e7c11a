//! A connection's two halves.

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
/// Take it apart and give each half to its thread. The connection ends when both halves are
/// dropped.
#[derive(Debug)]
pub struct Link {
    /// The half that sends.
    pub sender: Sender,
    /// The half that receives.
    pub receiver: Receiver,
    /// Who is at the other end.
    pub peer: Peer,
}

/// A link's sending half. Dropping it tells the peer that nothing more comes.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<Socket>,
    /// A send failed in the middle: the peer could not make sense of anything that followed.
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

/// Ends a link from any thread, also while its halves are in use.
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

    /// Two ends of one connection inside this process, with a send_timeout of ten seconds.
    ///
    /// # Errors
    /// [`io::Error`] when the system has no more sockets to give.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let send_timeout = super::options::SEND_TIMEOUT;
        let end = |fd: OwnedFd| Self::plain(fd.try_clone()?, Peer::of_unix(&fd)?, send_timeout);
        Ok((end(a)?, end(b)?))
    }

    /// What ends this link from another thread.
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer { socket: Arc::clone(&self.sender.socket) }
    }
}

impl Sender {
    /// Sends all bytes of all parts, in their order. The parts are used up.
    ///
    /// The link's send_timeout is for one call: keep the parts of one call below a few mebibytes,
    /// so that a slow network can carry them in time.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] when the peer does not take them within the link's send_timeout, or
    /// the system's error. Part of the bytes may have been sent then; the link is closed, and
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
    /// Receives what has come, as far as there is room, or waits for it. `None` means that nothing
    /// came for `wait` (zero: nothing is there now), `Some(0)` that the peer sends nothing
    /// more.
    ///
    /// Calls that wait equally long cost one system call each.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when `buf` is empty; [`ErrorKind::InvalidData`] when what came
    /// is not the peer's (TLS), and [`ErrorKind::UnexpectedEof`] when it ended without the
    /// peer's word for it (TLS); or the system's error.
    pub fn receive(&mut self, buf: &mut [u8], wait: Duration) -> io::Result<Option<usize>> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.receive(&self.socket, buf, wait, &mut self.timer);
        }
        self.socket.receive(buf, wait, &mut self.timer)
    }
}

impl Closer {
    /// Closes the link for both ends. Whoever waits in it is woken: a receiver has no more bytes, a
    /// sender an error.
    pub fn close(&self) {
        self.socket.close();
    }
}
