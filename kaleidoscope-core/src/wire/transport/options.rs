//! Options of listeners and connections.

use super::peer::Peer;
#[cfg(feature = "tls")]
use super::tls::{ClientTls, ServerTls};
use crate::setters::setters;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// How long one send may take by default.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Default limit of bytes in the kernel's send buffer that are not sent yet.
///
/// These bytes precede an urgent page: 128 KiB are 32 pages, or a tenth of a millisecond at
/// 10 Gbit/s. A smaller buffer runs empty before a sending thread on a busy host is scheduled
/// again.
const UNSENT: u32 = 128 << 10;

/// Stands for certificates where the feature `tls` is off: there are none.
#[cfg(not(feature = "tls"))]
pub(super) type ServerTls = std::convert::Infallible;
#[cfg(not(feature = "tls"))]
type ClientTls = std::convert::Infallible;

/// Options of a listener.
#[derive(Clone)]
#[non_exhaustive]
pub struct ListenOptions {
    /// Ids of the users that may connect to a Unix socket; by default this process's effective user
    /// and root.
    pub users: Vec<u32>,
    /// The permissions of a Unix socket's file; by default 0600. Users other than the owner need
    /// write permission to connect.
    pub mode: u32,
    /// How long one send may take before the link is closed; by default ten seconds.
    pub send_timeout: Duration,
    /// Most unsent bytes in the kernel's send buffer; by default 128 KiB. Urgent pages wait behind
    /// them.
    pub unsent: u32,
    /// Called for every refused peer.
    pub on_refusal: Option<OnRefusal>,
    /// How long a client may take for the TLS handshake; by default five seconds.
    pub handshake: Duration,
    pub(super) tls: Option<ServerTls>,
}

/// Callback for refused peers. Runs on the accepting thread, or on the thread of a handshake.
pub type OnRefusal = Arc<dyn Fn(&Refusal) + Send + Sync>;

impl Default for ListenOptions {
    fn default() -> Self {
        let own = rustix::process::geteuid().as_raw();
        Self {
            users: if own == 0 { vec![0] } else { vec![own, 0] },
            mode: 0o600,
            send_timeout: SEND_TIMEOUT,
            unsent: UNSENT,
            on_refusal: None,
            handshake: Duration::from_secs(5),
            tls: None,
        }
    }
}

impl fmt::Debug for ListenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenOptions")
            .field("users", &self.users)
            .field("mode", &format_args!("{:#o}", self.mode))
            .field("send_timeout", &self.send_timeout)
            .field("unsent", &self.unsent)
            .finish_non_exhaustive()
    }
}

setters!(ListenOptions {
    users: Vec<u32>,
    mode: u32,
    send_timeout: Duration,
    unsent: u32,
    on_refusal: Option<OnRefusal>,
    handshake: Duration,
});

impl ListenOptions {
    /// This server's certificate and the clients it trusts; `None` by default. If set, TCP uses
    /// TLS, and any address is allowed.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: Option<ServerTls>) -> Self {
        self.tls = tls;
        self
    }

    /// Whether the peer may connect.
    pub(super) fn allows(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Unix { uid, .. } => self.users.contains(uid),
            // TLS has refused untrusted peers; without TLS, only processes of this host can
            // connect.
            Peer::Tcp { .. } => true,
        }
    }

    pub(super) fn refuse(&self, refusal: &Refusal) {
        if let Some(tell) = &self.on_refusal {
            tell(refusal);
        }
    }
}

/// Why a peer was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer's user is not in [`ListenOptions::users`].
    #[error("{0} may not connect")]
    User(Peer),
    /// The TLS handshake failed or timed out.
    #[error("{0}: TLS: {1}")]
    Handshake(Peer, io::Error),
    /// The connection broke before it could be used.
    #[error("{0}: {1}")]
    Broken(Peer, io::Error),
}

/// Options of a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// How long connecting may take; by default five seconds. Name resolution is not included; the
    /// system's resolver has its own limits.
    pub timeout: Duration,
    /// How long one send may take before the link is closed; by default ten seconds.
    pub send_timeout: Duration,
    /// Most unsent bytes in the kernel's send buffer; by default 128 KiB.
    pub unsent: u32,
    /// Allows TCP without TLS to other hosts. Anyone on the network path can then read and change
    /// the guest's memory. Off by default.
    pub insecure: bool,
    pub(super) tls: Option<ClientTls>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            send_timeout: SEND_TIMEOUT,
            unsent: UNSENT,
            insecure: false,
            tls: None,
        }
    }
}

setters!(ConnectOptions { timeout: Duration, send_timeout: Duration, unsent: u32, insecure: bool });

impl ConnectOptions {
    /// This client's certificate and the servers it trusts; `None` by default. If set, TCP uses
    /// TLS.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: Option<ClientTls>) -> Self {
        self.tls = tls;
        self
    }

    /// Whether TCP uses TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// Why listening at an address failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Other hosts can reach the address, and there is no TLS to authenticate them.
    #[error(
        "tcp:{address} is not a loopback address: give a certificate, a key and a CA so that \
         clients are known by TLS, or listen at tcp:127.0.0.1:{} or at a Unix socket",
        address.port()
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The host name cannot be resolved.
    #[error("tcp:{name}: {source}")]
    Unresolved {
        /// Host and port.
        name: String,
        /// The resolver's reason.
        source: io::Error,
    },
    /// Another server listens there.
    #[error("unix:{}: another server listens there", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path exists and is not a socket; it is left alone.
    #[error(
        "unix:{}: the file is not a socket; remove it or choose another path",
        path.display()
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{address}: {source}")]
    Io {
        /// The address.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
}
