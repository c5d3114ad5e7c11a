//! A connected stream socket: blocking sends and receives with timeouts.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Parts that one system call takes (Linux's `UIO_MAXIOV`).
const MAX_PARTS: usize = 1024;

/// Waits below this use `poll`: a socket's own timeout has the resolution of a kernel tick, up to
/// 10 ms.
const SHORT_WAIT: Duration = Duration::from_millis(20);

/// The longest timeout set on a socket; longer waits are split.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A connected stream socket in blocking mode.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    send_timeout: Duration,
}

/// The receive timeout that is set on the socket, so that only changes need a system call.
#[derive(Debug, Default)]
pub(super) struct Timer(Duration);

impl Socket {
    /// Wraps a connected socket; `send_timeout` limits each send.
    pub(super) fn new(fd: OwnedFd, send_timeout: Duration) -> io::Result<Self> {
        let send_timeout = send_timeout.clamp(Duration::from_millis(1), LONGEST_WAIT);
        set_socket_timeout(&fd, Timeout::Send, Some(send_timeout))?;
        Ok(Self { fd, send_timeout })
    }

    /// Sends all bytes of all parts: one system call unless the socket's buffer is full.
    pub(super) fn send(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut rest = parts;
        IoSlice::advance_slices(&mut rest, 0);
        let start = Instant::now();
        loop {
            let Some(now) = rest.get(..rest.len().min(MAX_PARTS)).filter(|now| !now.is_empty())
            else {
                return Ok(());
            };
            // The kernel blocks until all bytes are queued or the socket's send timeout expires,
            // and returns how many were.
            match sendmsg(&self.fd, now, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Ok(sent) => IoSlice::advance_slices(&mut rest, sent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(self.send_timed_out()),
                Err(error) => return Err(error.into()),
            }
            if !rest.is_empty() && start.elapsed() >= self.send_timeout {
                return Err(self.send_timed_out());
            }
        }
    }

    /// Sends what fits into the socket's buffer without blocking.
    #[cfg(feature = "tls")]
    pub(super) fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        use rustix::net::send;
        Ok(send(&self.fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    }

    #[cfg(feature = "tls")]
    pub(super) fn send_timeout(&self) -> Duration {
        self.send_timeout
    }

    pub(super) fn send_timed_out(&self) -> io::Error {
        let message = format!("the peer did not accept the data within {:?}", self.send_timeout);
        io::Error::new(ErrorKind::TimedOut, message)
    }

    /// Receives available bytes, or waits for the first ones. Takes one system call if `wait` is
    /// the same as in the last call: a socket's own timeout lets a single `recv` replace `poll` and
    /// `recv`.
    pub(super) fn receive(
        &self,
        buf: &mut [u8],
        wait: Duration,
        timer: &mut Timer,
    ) -> io::Result<Option<usize>> {
        if buf.is_empty() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "no room to receive into"));
        }
        if wait.is_zero() {
            return self.receive_at_once(buf);
        }
        let start = Instant::now();
        let mut left = wait;
        while left >= SHORT_WAIT {
            let timeout = left.min(LONGEST_WAIT);
            if timer.0 != timeout {
                set_socket_timeout(&self.fd, Timeout::Recv, Some(timeout))?;
                timer.0 = timeout;
            }
            match recv(&self.fd, &mut *buf, RecvFlags::empty()) {
                Ok((received, _)) => return Ok(Some(received)),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            left = wait.saturating_sub(start.elapsed());
        }
        loop {
            if let Some(received) = self.receive_at_once(buf)? {
                return Ok(Some(received));
            }
            let left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            wait_readable(&mut [PollFd::new(&self.fd, PollFlags::IN)], left)?;
        }
    }

    fn receive_at_once(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match recv(&self.fd, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((received, _)) => return Ok(Some(received)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends the outgoing stream.
    pub(super) fn end(&self) {
        // Fails only if the socket is no longer connected, and then there is no stream to end.
        let _ = shutdown(&self.fd, Shutdown::Write);
    }

    /// Ends both streams, which wakes threads blocked on this socket.
    pub(super) fn close(&self) {
        let _ = shutdown(&self.fd, Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of the descriptors is ready, `wait` has passed or a signal arrives.
pub(super) fn wait_readable(fds: &mut [PollFd<'_>], wait: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(wait.min(LONGEST_WAIT)).map_err(io::Error::other)?;
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
