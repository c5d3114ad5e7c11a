//! Descriptors that one process sends to another over a Unix socket.

use crate::error::{Asked, Error};
use crate::sys::Peer;
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Most bytes of a message. Firecracker's has some hundred for each region.
const MAX_MESSAGE: usize = 64 << 10;

/// Most descriptors of a message: Linux's own limit (SCM_MAX_FD).
const MAX_DESCRIPTORS: usize = 253;

/// What a VMM sends to have its memory served.
#[derive(Debug)]
#[non_exhaustive]
pub struct Handoff {
    /// The bytes that came with the descriptors.
    pub message: Vec<u8>,
    /// The descriptors, in their order.
    pub descriptors: Vec<OwnedFd>,
    /// The process that made the connection (pidfd), which tells when it has exited.
    pub process: OwnedFd,
    /// The number of that process, for messages: another process may get it once this one has
    /// exited. 0 when this process cannot see it (another PID namespace).
    pub pid: u32,
    /// The user of that process when it connected.
    pub uid: u32,
}

/// The process at the other end of a connection, as [`receive`] tells it with a message.
///
/// # Errors
/// [`ErrorKind::Refused`](crate::ErrorKind::Refused) when it is gone.
pub fn peer(stream: &UnixStream) -> Result<Peer, Error> {
    Peer::of(stream.as_fd()).asked("identifying the process that has connected")
}

/// Receives one message with descriptors. Waits as long as the socket's read timeout says.
///
/// # Errors
/// [`ErrorKind::Refused`](crate::ErrorKind::Refused) when nothing comes, when the sender is gone,
/// or with [`Errno::MSGSIZE`] when the message is longer than 64 KiB.
pub fn receive(stream: &UnixStream) -> Result<Handoff, Error> {
    let what = "receiving a VM's descriptors";
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match recvmsg(stream, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other.asked(what)?,
        }
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        || received.bytes == MAX_MESSAGE
    {
        return Err(Errno::MSGSIZE).asked(what);
    }
    if received.bytes == 0 && descriptors.is_empty() {
        return Err(Errno::CONNRESET).asked(what);
    }
    bytes.truncate(received.bytes);
    let peer = Peer::of(stream.as_fd()).asked("identifying the sender of a VM's descriptors")?;
    Ok(Handoff { message: bytes, descriptors, process: peer.process, pid: peer.pid, uid: peer.uid })
}

/// Sends one message, of at least one byte, with descriptors: what a VMM does.
///
/// # Errors
/// [`ErrorKind::Refused`](crate::ErrorKind::Refused) when the receiver is gone, or did not take all
/// of the message.
pub fn send(
    stream: &UnixStream,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let what = "sending descriptors";
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if message.is_empty() || !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::MSGSIZE).asked(what);
    }
    let sent = loop {
        match sendmsg(stream, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => break other.asked(what)?,
        }
    };
    if sent < message.len() { Err(Errno::MSGSIZE).asked(what) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec};
    use std::io::Read;

    #[test]
    fn a_message_comes_with_its_descriptors_and_its_sender() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut read, write) = std::io::pipe().unwrap();
        send(&there, b"two", &[write.as_fd(), there.as_fd()]).unwrap();
        drop(write);
        let handoff = receive(&here).unwrap();
        assert_eq!((handoff.message.as_slice(), handoff.descriptors.len()), (&b"two"[..], 2));
        assert_eq!(handoff.pid, std::process::id());
        assert_eq!(handoff.uid, rustix::process::getuid().as_raw());
        let mut descriptors = handoff.descriptors.into_iter();
        let poll = &mut [PollFd::new(&handoff.process, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(poll, Some(&now)).unwrap(), 0, "this process lives");
        drop(descriptors.next());
        let mut text = String::new();
        assert_eq!(read.read_to_string(&mut text).unwrap(), 0, "the last writer is gone");
    }

    #[test]
    fn what_does_not_come_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_read_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
        assert!(receive(&here).unwrap_err().to_string().contains("receiving"));
        drop(there);
        let error = receive(&here).unwrap_err();
        assert!(error.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()), "{error}");
        let (here, there) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || send(&there, &[1; MAX_MESSAGE], &[]));
        let error = receive(&here).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()), "{error}");
        thread.join().unwrap().unwrap();
    }
}
