//! The identity of a link's peer.

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// The identity of a link's peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process on this host that connected or listens, as reported by the kernel.
    Unix {
        /// User id of the process.
        uid: u32,
        /// Group id of the process.
        gid: u32,
        /// Process id in this process's PID namespace; zero if it is not visible there.
        pid: i32,
    },
    /// The other end of a TCP connection.
    Tcp {
        /// Its address.
        address: SocketAddr,
        /// Identity in its certificate; `None` without TLS.
        subject: Option<PeerIdentity>,
    },
}

/// The identity in a verified certificate.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PeerIdentity {
    /// The DNS names among the certificate's subject alternative names, in their order; may be
    /// empty.
    pub names: Vec<String>,
}

impl Peer {
    /// The process at the other end of a Unix socket.
    pub(super) fn of_unix(socket: impl AsFd) -> io::Result<Self> {
        // rustix provides this as well, but its process ids cannot be zero.
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
