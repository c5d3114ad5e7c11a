//! Pages over sockets: the protocol, a server of snapshot images, and a client that clones fetch
//! pages with.
//!
//! [`transport`] carries bytes and authenticates the peer, `protocol` encodes and decodes
//! messages, [`server`] and [`client`] are the two ends.

pub mod client;
pub(crate) mod protocol;
pub mod server;
pub mod transport;

pub use protocol::{Codecs, Features};
