//! Pages over sockets: the protocol, a server of snapshot images, and a client that clones fetch
//! from.
//!
//! [`transport`] carries bytes and knows who sends them, [`protocol`] says what they mean,
//! [`server`] and [`client`] are the two ends.

pub mod client;
pub mod protocol;
pub mod server;
pub mod transport;
