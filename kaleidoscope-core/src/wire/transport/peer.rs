//! Who is at the other end.

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// Who is at the other end of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process on this host, as the kernel knows it: whoever connected, or whoever listens.
    Unix {
        /// The user it runs as.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its process id, as seen from here; zero where it cannot be seen (another process
        /// namespace).
        pid: i32,
    },
    /// A TCP connection's other end.
    Tcp {
        /// Its address.
        address: SocketAddr,
        /// Who its certificate says it is; `None` without TLS.
        subject: Option<PeerIdentity>,
    },
}

/// Who a verified certificate speaks for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PeerIdentity {
    /// The DNS names among the certificate's subject alternative names, in their order; may be
    /// empty.
    pub names: Vec<String>,
}

impl Peer {
    /// The process at the other end of a Unix socket.
    pub(super) fn of_unix(socket: impl AsFd) -> io::Result<Self> {
        // rustix has this too, but its process ids cannot be zero.
        let who = getsockopt(&socket, PeerCredentials)?;
        Ok(Self::Unix { uid: who.uid(), gid: who.gid(), pid: who.pid() })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid, pid, .. } => write!(f, "process {pid} of user {uid}"),
            Self::Tcp { address, subject: None } => write!(f, "{address}"),
            Self::Tcp { address, subject: Some(subject) } => write!(f, "{subject} at {address}"),
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            f.write_str("(no name)")
        } else {
            f.write_str(&self.names.join(", "))
        }
    }
}
