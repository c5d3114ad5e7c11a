//! Options of a client.

use crate::clone::CloneId;
use crate::setters::setters;
use crate::wire::protocol::{Codecs, Features, MAX_BATCH, MAX_DESCRIPTOR};
use std::time::Duration;

/// Options of a client: what it requests, and its timeouts.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Digest of the wanted image; `None` for the only image of the server.
    pub image: Option<[u8; 32]>,
    /// Identity of the clone, for the server's records.
    pub clone_id: CloneId,
    /// Features to request.
    pub features: Features,
    /// Most pages in one reply, 1 to `MAX_BATCH`.
    pub batch: usize,
    /// Number of prefetched frames to keep in flight.
    pub window: usize,
    /// Bytes of the receive buffer.
    pub buffer: usize,
    /// Most bytes of a descriptor to accept.
    pub descriptor: u32,
    /// How long a connected server may take to welcome the client.
    pub handshake: Duration,
    /// How long a server may send no page while some are outstanding, before another is tried.
    pub timeout: Duration,
    /// How long a frame may be outstanding in all, across servers, before the client fails for
    /// good.
    pub deadline: Duration,
    /// Longest pause between two rounds of trying all servers; the first pauses are shorter.
    pub backoff: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            image: None,
            clone_id: CloneId([0; 16]),
            features: Features { checksums: true, codecs: Codecs::NONE },
            batch: MAX_BATCH,
            window: 128,
            buffer: 256 << 10,
            descriptor: MAX_DESCRIPTOR,
            handshake: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            backoff: Duration::from_secs(1),
        }
    }
}

setters!(ClientOptions {
    image: Option<[u8; 32]>,
    clone_id: CloneId,
    features: Features,
    batch: usize,
    window: usize,
    buffer: usize,
    descriptor: u32,
    handshake: Duration,
    timeout: Duration,
    deadline: Duration,
    backoff: Duration,
});
