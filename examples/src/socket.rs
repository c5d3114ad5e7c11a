//! The socket at which VMMs connect, and connections to theirs.

use crate::failure::Failure;
use crate::interrupt::{Armed, Undo, arm_with};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, chmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pause between two attempts to connect.
const RETRY: Duration = Duration::from_millis(10);

/// A socket that listens. Its file is removed on drop, and after the process was killed, unless it
/// is [kept](Self::keep_file).
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    file: Option<Armed>,
}

impl Socket {
    /// Listens at `path` with these permissions. A socket without a listener is replaced.
    pub(crate) fn bind(path: &Path, mode: u32) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            let hint = hint(error.kind());
            Failure::at(path, format_args!("cannot listen: {error}")).maybe_hint(hint)
        };
        let path = std::path::absolute(path).map_err(failed)?;
        remove_stale(&path).map_err(failed)?;
        // If the path is in use after all, the failed bind leaves it alone.
        let (listener, file) =
            arm_with(Undo::Remove(path.clone()), || UnixListener::bind(&path)).map_err(failed)?;
        chmod(&path, Mode::from_raw_mode(mode)).map_err(|error| failed(error.into()))?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, path, file: Some(file) })
    }

    /// Goes on with a socket that listens at `path` already, and keeps its file.
    pub(crate) fn of(listener: UnixListener, path: PathBuf) -> Self {
        Self { listener, path, file: None }
    }

    /// Leaves the file to the caller.
    pub(crate) fn keep_file(&mut self) {
        if let Some(file) = self.file.take() {
            file.disarm();
        }
    }

    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, if one comes within `time`.
    pub(crate) fn accept_within(&self, time: Duration) -> Result<Option<UnixStream>, Failure> {
        let time = Timespec::try_from(time).map_err(Failure::new)?;
        let mut ready = [PollFd::new(&self.listener, PollFlags::IN)];
        match poll(&mut ready, Some(&time)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            polled => polled.map_err(|error| Failure::at(&self.path, error))?,
        };
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(|error| Failure::at(&self.path, error))?;
                Ok(Some(stream))
            }
            // The peer is gone, or there are no descriptors now.
            Err(error) if is_passing(&error) => {
                std::thread::sleep(Duration::from_millis(10));
                Ok(None)
            }
            Err(error) => Err(Failure::at(&self.path, error)),
        }
    }
}

/// Connects to a socket, and waits for at most `time` for a process to listen there, for as long as
/// `goes_on` says so between attempts.
pub(crate) fn connect_within(
    path: &Path,
    time: Duration,
    goes_on: &mut dyn FnMut() -> bool,
) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let last = Instant::now() + time;
    loop {
        match connect_now(&address) {
            Err(_) if Instant::now() < last => {}
            done => return done,
        }
        if !goes_on() {
            return Err(ErrorKind::Interrupted.into());
        }
        std::thread::sleep(RETRY);
    }
}

/// Connects. Fails where too many connections wait to be accepted.
fn connect_now(address: &SocketAddrUnix) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, address)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether a later connection may be accepted.
fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::AGAIN,
        Errno::INTR,
        Errno::CONNABORTED,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
    ];
    passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Removes a socket at which nothing listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            Err(io::Error::new(ErrorKind::AlreadyExists, "a file that is no socket is there"))
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(ErrorKind::AddrInUse.into()),
        },
    }
}

fn hint(error: ErrorKind) -> Option<&'static str> {
    let hints = [
        (
            ErrorKind::AddrInUse,
            "another process listens there: stop it, or choose another --socket",
        ),
        (ErrorKind::AlreadyExists, "choose another --socket, or remove the file"),
        (ErrorKind::NotFound, "the socket's folder has to exist"),
        (ErrorKind::InvalidInput, "a socket's path has at most 107 bytes"),
    ];
    hints.into_iter().find_map(|(kind, hint)| (kind == error).then_some(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_waits_for_a_listener_and_for_no_queue() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let minute = Duration::from_secs(60);
        let mut attempts = 0;
        let mut listener = None;
        let connected = connect_within(&path, minute, &mut || {
            attempts += 1;
            if attempts == 3 {
                listener = Some(UnixListener::bind(&path).unwrap());
            }
            true
        });
        assert!(connected.is_ok() && attempts == 3, "{connected:?}, {attempts}");
        // The queue of connections that are not accepted becomes full.
        rustix::net::listen(listener.as_ref().unwrap(), 1).unwrap();
        let all: io::Result<Vec<_>> =
            (0..8).map(|_| connect_within(&path, Duration::ZERO, &mut || true)).collect();
        assert_eq!(all.unwrap_err().kind(), ErrorKind::WouldBlock);
        let error = connect_within(&dir.path().join("none"), minute, &mut || false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }

    #[test]
    fn stale_sockets_are_replaced_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path, 0o600).unwrap();
        assert!(socket.accept_within(Duration::ZERO).unwrap().is_none());
        let error = Socket::bind(&path, 0o600).unwrap_err().to_string();
        assert!(error.contains("another process listens there"), "{error}");
        // The failed attempt has connected.
        assert!(socket.accept_within(Duration::from_secs(1)).unwrap().is_some());
        let _peer = UnixStream::connect(&path).unwrap();
        assert!(socket.accept_within(Duration::from_secs(1)).unwrap().is_some());
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "kept").unwrap();
        let error = Socket::bind(&path, 0o600).unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"kept");
    }
}
