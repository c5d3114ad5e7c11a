//! Unix sockets, and the lifetime of their files.

use super::options::{ListenError, ListenOptions};
use rustix::fs::{FlockOperation, Mode, OFlags, chmod, flock, open};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen};
use rustix::net::{connect, socket_with};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// How long to wait for another server that starts in the same folder.
const FOLDER_WAIT: Duration = Duration::from_secs(2);

/// A socket's file, removed on drop unless another file has replaced it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: file.dev(), inode: file.ino() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let file = fs::symlink_metadata(&self.path);
        if file.is_ok_and(|file| (file.dev(), file.ino()) == (self.device, self.inode)) {
            // A stale file does no harm: the next server replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at a path. A stale socket file, without a listener, is replaced.
pub(super) fn listen_at(
    path: &Path,
    options: &ListenOptions,
) -> Result<(UnixListener, SocketFile), ListenError> {
    let failed =
        |source: io::Error| ListenError::Io { address: format!("unix:{}", path.display()), source };
    let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
    let _lock = lock_folder(path).map_err(failed)?;
    let socket = new_socket().map_err(failed)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            let file = fs::symlink_metadata(path).map_err(failed)?;
            if !file.file_type().is_socket() {
                return Err(ListenError::NotASocket { path: path.to_owned() });
            }
            match connect_to(&address, Duration::from_secs(1)) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                // A full queue also means that a server is listening.
                Ok(_) => return Err(ListenError::InUse { path: path.to_owned() }),
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    return Err(ListenError::InUse { path: path.to_owned() });
                }
                Err(error) => return Err(failed(error)),
            }
            fs::remove_file(path).map_err(failed)?;
            bind(&socket, &address).map_err(|error| failed(error.into()))?;
        }
        bound => bound.map_err(|error| failed(error.into()))?,
    }
    let file = SocketFile::new(path).map_err(failed)?;
    // No client can connect before `listen`, whatever permissions the file was created with.
    chmod(path, Mode::from_raw_mode(options.mode & 0o777)).map_err(|error| failed(error.into()))?;
    listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((listener, file))
}

/// Locks the folder, so that no two servers replace a stale file in it at the same time: each would
/// take the other's new socket for stale until it listens.
fn lock_folder(path: &Path) -> io::Result<OwnedFd> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let folder = open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let start = Instant::now();
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(Errno::AGAIN | Errno::INTR) if start.elapsed() < FOLDER_WAIT => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::AGAIN) => {
                let message = "another process holds a lock on the socket's folder";
                return Err(io::Error::new(ErrorKind::WouldBlock, message));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Connects within `timeout`; the call blocks while the server's queue is full.
pub(super) fn connect_path(path: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    connect_to(&SocketAddrUnix::new(path)?, timeout)
}

fn connect_to(address: &SocketAddrUnix, timeout: Duration) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    let start = Instant::now();
    loop {
        let left = timeout.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
        set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        match connect(&socket, address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) if start.elapsed() < timeout => {}
            Err(Errno::AGAIN | Errno::INTR) => {
                let message = "the server does not accept connections";
                return Err(io::Error::new(ErrorKind::TimedOut, message));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sets the socket options for page transfer.
pub(super) fn prepare(socket: impl AsFd, unsent: u32) -> io::Result<()> {
    // On a Unix socket, sent bytes stay in the sender's buffer until they are received.
    let bytes = usize::try_from(unsent.max(4096)).unwrap_or(usize::MAX);
    Ok(set_socket_send_buffer_size(socket, bytes)?)
}
