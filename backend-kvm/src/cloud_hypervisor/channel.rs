//! A connection on which every wait has a deadline.

use super::codec::{HEADER, Request, Response};
use crate::error::{Asked, Error, ErrorKind};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one system call waits. Deadlines are looked at between calls.
const TICK: Duration = Duration::from_millis(50);

/// How often a connection is tried anew.
const RETRY: Duration = Duration::from_millis(10);

/// A connection to a VMM.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    timeout: Duration,
}

/// Whether a message has begun when the other end closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Received {
    /// All bytes.
    All,
    /// The other end has closed the connection before the first byte.
    Closed,
}

impl Channel {
    /// A connection whose other end may take `timeout` to answer, or to take a message.
    pub(super) fn of(stream: UnixStream, timeout: Duration) -> Result<Self, Error> {
        let what = "limiting the waits on a VMM's connection";
        stream.set_nonblocking(false).asked(what)?;
        stream.set_read_timeout(Some(TICK)).asked(what)?;
        stream.set_write_timeout(Some(TICK)).asked(what)?;
        Ok(Self { stream, timeout })
    }

    /// Connects to the socket at `path`, which may not be there yet.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when nothing listens there in time.
    pub(super) fn connect(path: &Path, timeout: Duration) -> Result<Self, Error> {
        let what = || format!("connecting to {}", path.display());
        let address = SocketAddrUnix::new(path).asked(what())?;
        let end = Instant::now().checked_add(timeout);
        // A blocking connect waits for ever where the listener accepts nothing.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let socket = socket.asked(what())?;
        loop {
            match connect(&socket, &address) {
                Ok(()) => break,
                // Nothing listens yet, or more connections wait than the listener allows.
                Err(error @ (Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN)) => {
                    if is_over(end) {
                        let error = std::io::Error::from(error);
                        return Err(Error::caused_by(ErrorKind::Timeout, what(), error));
                    }
                    std::thread::sleep(RETRY);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).asked(what()),
            }
        }
        let blocking = fcntl_getfl(&socket).asked(what())? - OFlags::NONBLOCK;
        fcntl_setfl(&socket, blocking).asked(what())?;
        Self::of(UnixStream::from(socket), timeout)
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Ends the wait for what the other end sends. It can still be answered.
    pub(super) fn stop_receiving(&self) {
        // Fails where the other end has closed already.
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Ends both directions, and the waits on them.
    pub(super) fn close(&self) {
        // Fails where the other end has closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The end of a wait that begins now; `None` for times that this system cannot represent.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.timeout)
    }

    /// Receives exactly these bytes. `goes_on` is asked again and again, until the first byte has
    /// come, whether to wait any longer; from then on, all must come before the timeout.
    ///
    /// # Errors
    /// `what` with [`ErrorKind::Timeout`], or [`ErrorKind::Ended`] when the other end closes the
    /// connection within a message, or `goes_on` says no.
    pub(super) fn receive_when(
        &self,
        bytes: &mut [u8],
        what: &'static str,
        mut goes_on: impl FnMut() -> Result<(), Error>,
    ) -> Result<Received, Error> {
        let mut done = 0;
        let mut end = None;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match recv(&self.stream, rest, RecvFlags::empty()) {
                Ok((0, _)) | Err(Errno::CONNRESET) if done == 0 => return Ok(Received::Closed),
                Ok((0, _)) => return Err(closed(what)),
                Ok((n, _)) => {
                    if done == 0 {
                        end = self.deadline();
                    }
                    done = done.saturating_add(n);
                }
                Err(Errno::AGAIN | Errno::INTR) if done == 0 => {
                    goes_on()?;
                    continue;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(closed(what)),
                Err(error) => return Err(error).asked(what),
            }
            if done < bytes.len() && done > 0 && is_over(end) {
                return Err(late(what));
            }
        }
        Ok(Received::All)
    }

    /// Receives exactly these bytes, before the timeout.
    pub(super) fn receive(&self, bytes: &mut [u8], what: &'static str) -> Result<(), Error> {
        let end = self.deadline();
        let goes_on = || if is_over(end) { Err(late(what)) } else { Ok(()) };
        match self.receive_when(bytes, what, goes_on)? {
            Received::All => Ok(()),
            Received::Closed => Err(closed(what)),
        }
    }

    /// Sends bytes, before the timeout.
    pub(super) fn send(&self, bytes: &[u8], what: &'static str) -> Result<(), Error> {
        let end = self.deadline();
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match send(&self.stream, rest, SendFlags::NOSIGNAL) {
                Ok(n) => done = done.saturating_add(n),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(closed(what)),
                Err(error) => return Err(error).asked(what),
            }
            if done < bytes.len() && is_over(end) {
                return Err(late(what));
            }
        }
        Ok(())
    }

    /// Sends a request and its payload, and waits for the answer.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when the VMM answers that it failed.
    pub(super) fn request(
        &self,
        request: Request,
        payload: &[u8],
        what: &'static str,
    ) -> Result<(), Error> {
        self.send(&request.to_bytes(), what)?;
        self.send(payload, what)?;
        self.answered(what)
    }

    /// Waits for the answer to a request.
    pub(super) fn answered(&self, what: &'static str) -> Result<(), Error> {
        let mut bytes = [0; HEADER];
        self.receive(&mut bytes, what)?;
        match Response::parse(&bytes)? {
            Response::OK => Ok(()),
            Response { is_ok: true, length } => {
                Err(Error::input(format!("{what}: the answer has {length} bytes, not 0")))
            }
            Response { is_ok: false, .. } => {
                let what = format!("{what}: cloud-hypervisor refused it; its log says why");
                Err(Error::new(ErrorKind::Refused, what))
            }
        }
    }
}

fn is_over(end: Option<Instant>) -> bool {
    end.is_some_and(|end| Instant::now() >= end)
}

fn late(what: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, format!("{what}: cloud-hypervisor did not answer in time"))
}

fn closed(what: &'static str) -> Error {
    let what = format!("{what}: cloud-hypervisor closed the connection; its log says why");
    Error::new(ErrorKind::Ended, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud_hypervisor::codec::Command;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    const SHORT: Duration = Duration::from_millis(1);

    fn pair(timeout: Duration) -> (Channel, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        (Channel::of(here, timeout).unwrap(), there)
    }

    #[test]
    fn what_does_not_come_in_time_is_an_error() {
        let (channel, mut there) = pair(SHORT);
        let error = channel.receive(&mut [0; 4], "waiting").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        there.write_all(&[1, 2]).unwrap();
        let error = channel.receive(&mut [0; 4], "waiting").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        let error = channel.send(&vec![0; 16 << 20], "sending").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        drop(there);
        let error = channel.send(&[0], "sending").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Ended, "{error}");
    }

    #[test]
    fn an_end_within_a_message_is_an_error_and_before_it_is_told() {
        let (channel, mut there) = pair(Duration::from_secs(60));
        there.write_all(&[1, 2]).unwrap();
        drop(there);
        let error = channel.receive_when(&mut [0; 4], "waiting", || Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Ended, "{error}");
        let received = channel.receive_when(&mut [0; 4], "waiting", || Ok(())).unwrap();
        assert_eq!(received, Received::Closed);
    }

    #[test]
    fn answers_are_checked() {
        for (answer, kind) in [
            (Response::ERROR, ErrorKind::Refused),
            (Response { is_ok: true, length: 1 }, ErrorKind::InvalidInput),
        ] {
            let (channel, mut there) = pair(Duration::from_secs(60));
            there.write_all(&answer.to_bytes()).unwrap();
            let request = Request::new(Command::State, 2);
            assert_eq!(channel.request(request, b"{}", "state").unwrap_err().kind(), kind);
            let mut sent = [0; HEADER + 2];
            there.read_exact(&mut sent).unwrap();
            assert_eq!(sent[..HEADER], request.to_bytes());
        }
    }

    #[test]
    fn a_socket_that_is_not_there_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let error = Channel::connect(&path, SHORT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        let own = path.clone();
        let thread = std::thread::spawn(move || Channel::connect(&own, Duration::from_secs(60)));
        let listener = UnixListener::bind(&path).unwrap();
        listener.accept().unwrap();
        thread.join().unwrap().unwrap();
        // The listener accepts no more, and its queue fills.
        let mut all = Vec::new();
        let error = loop {
            match Channel::connect(&path, SHORT) {
                Ok(channel) => all.push(channel),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        let long = Path::new("/").join("x".repeat(200));
        assert_eq!(Channel::connect(&long, SHORT).unwrap_err().kind(), ErrorKind::Refused);
    }
}
