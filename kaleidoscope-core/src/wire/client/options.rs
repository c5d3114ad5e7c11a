//! How a client fetches.

use crate::clone::CloneId;
use crate::wire::protocol::{Codecs, Features, MAX_BATCH, MAX_DESCRIPTOR};
use std::time::Duration;

/// How a client fetches, and how long it bears with its servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientOptions {
    /// Digest of the image that it wants; `None` for the only one that the server has.
    pub image: Option<[u8; 32]>,
    /// Which clone it is, for the server's records.
    pub clone: CloneId,
    /// What it would like.
    pub features: Features,
    /// Most pages in one reply.
    pub batch: usize,
    /// How many prefetched frames to have on their way.
    pub window: usize,
    /// Bytes of the receive buffer.
    pub buffer: usize,
    /// Most bytes of a descriptor that it takes.
    pub descriptor: u32,
    /// How long a server may take to welcome it, once it is connected.
    pub handshake: Duration,
    /// How long a server may send no page while some are awaited, before another one is asked.
    pub timeout: Duration,
    /// How long a frame may be awaited in all, whatever servers are tried, before the client gives
    /// up.
    pub deadline: Duration,
    /// The longest pause between two rounds of trying all servers; the first ones are shorter.
    pub backoff: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            image: None,
            clone: CloneId([0; 16]),
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
