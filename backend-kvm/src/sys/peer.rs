//! The process at the other end of a Unix socket.

#![expect(unsafe_code, reason = "socket options that rustix does not have, or cannot represent")]

use libc::{SO_PEERCRED, SOL_SOCKET, c_int, getsockopt, socklen_t, ucred};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// SO_PEERPIDFD of asm-generic/socket.h (Linux 6.5).
const SO_PEERPIDFD: c_int = 77;

/// The process that connected a socket, and its user at that time.
#[derive(Debug)]
#[non_exhaustive]
pub struct Peer {
    /// pidfd; readable once the process has exited.
    pub process: OwnedFd,
    /// Its number, for messages; 0 when this process cannot see it (another PID namespace).
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

impl Peer {
    /// The peer of a connected Unix socket.
    ///
    /// # Errors
    /// [`Errno::SRCH`] when the process is gone, or, before Linux 6.5, when this process cannot see
    /// it (another PID namespace).
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        let credentials = credentials(socket)?;
        let process = match process(socket) {
            // Before Linux 6.5. The process may have exited, and its number may be another's.
            Err(Errno::NOPROTOOPT) => {
                let pid = Pid::from_raw(credentials.pid).ok_or(Errno::SRCH)?;
                pidfd_open(pid, PidfdFlags::empty())?
            }
            found => found?,
        };
        let pid = u32::try_from(credentials.pid).unwrap_or(0);
        Ok(Self { process, pid, uid: credentials.uid })
    }
}

fn answer(done: c_int) -> Result<(), Errno> {
    let error = || Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
    if done == 0 { Ok(()) } else { Err(error()) }
}

/// Bytes of a socket option.
fn len<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// The peer's credentials. Its process number is 0 when this process cannot see it, which rustix's
/// type for credentials cannot hold.
fn credentials(socket: BorrowedFd<'_>) -> Result<ucred, Errno> {
    let (mut found, mut len) = (ucred { pid: 0, uid: 0, gid: 0 }, len::<ucred>());
    let (value, fd) = ((&raw mut found).cast(), socket.as_raw_fd());
    // SAFETY: getsockopt writes at most `len` bytes, the size of `found`, to `found`, whose fields
    // are integers. `socket` is open.
    answer(unsafe { getsockopt(fd, SOL_SOCKET, SO_PEERCRED, value, &raw mut len) })?;
    Ok(found)
}

fn process(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let (mut found, mut len) = (-1, len::<c_int>());
    let (value, fd) = ((&raw mut found).cast(), socket.as_raw_fd());
    // SAFETY: getsockopt writes at most `len` bytes, the size of `found`, to `found`, an integer.
    // `socket` is open.
    answer(unsafe { getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, value, &raw mut len) })?;
    if found < 0 {
        return Err(Errno::SRCH);
    }
    // SAFETY: the kernel opened this descriptor for the call above, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}
