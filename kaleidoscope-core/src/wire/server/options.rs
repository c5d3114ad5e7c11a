//! How a server serves.

use crate::wire::protocol::{Features, MAX_BATCH, MAX_PENDING};
use std::time::Duration;

/// How a server serves, and what it lets clients take of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerOptions {
    /// Most connections in all. One more is refused as long as that is cheap, and then closed
    /// unanswered.
    pub connections: usize,
    /// Most connections of one peer: of one user over a Unix socket, of one host or certificate
    /// over TCP.
    pub connections_per_peer: usize,
    /// Most frames that one client may keep unanswered.
    pub pending: u32,
    /// Most pages in one reply: what a waiting fault has to wait for at most when the server is
    /// sending already.
    pub batch: usize,
    /// How long a client may take to say hello.
    pub handshake: Duration,
    /// How long a connection is kept on which nothing is asked for.
    pub idle: Duration,
    /// The features that clients may choose from.
    pub features: Features,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let codecs = crate::wire::protocol::Codecs::ALL;
        Self {
            connections: 4096,
            connections_per_peer: 4096,
            pending: 4096,
            batch: 32,
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(15 * 60),
            features: Features { checksums: true, codecs },
        }
    }
}

impl ServerOptions {
    /// The options within what the protocol can say.
    pub(super) fn bounded(mut self) -> Self {
        self.batch = self.batch.clamp(1, MAX_BATCH);
        self.pending = self.pending.clamp(1, MAX_PENDING);
        self
    }
}
