//! Options of a server.

use crate::setters::setters;
use crate::wire::protocol::{Features, MAX_BATCH, MAX_PENDING};
use std::time::Duration;

/// Options of a server, and its limits per client.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Most connections in total. A few more are refused with a reply, further ones are closed
    /// without.
    pub connections: usize,
    /// Most connections of one peer: of one user over a Unix socket, of one host or certificate
    /// over TCP.
    pub connections_per_peer: usize,
    /// Most frames that one client may have unanswered.
    pub pending: u32,
    /// Most pages in one reply, which is also the most that an urgent page waits for.
    pub batch: usize,
    /// How long a client may take to send its hello.
    pub handshake: Duration,
    /// How long a connection is kept without a request.
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
    /// The options clamped to the protocol's limits.
    pub(super) fn bounded(mut self) -> Self {
        self.batch = self.batch.clamp(1, MAX_BATCH);
        self.pending = self.pending.clamp(1, MAX_PENDING);
        self
    }
}

setters!(ServerOptions {
    connections: usize,
    connections_per_peer: usize,
    pending: u32,
    batch: usize,
    handshake: Duration,
    idle: Duration,
    features: Features,
});
