//! Byte streams between a page server and its clients, over Unix sockets and TCP.
//!
//! A [`Link`] is a connection whose peer is known. Two threads use its halves at the same time: one
//! sends while the other receives. The protocol defines the bytes.
//!
//! Access control:
//!
//! * Unix sockets accept the users in [`ListenOptions::users`]. The kernel reports the peer's user;
//!   other peers are disconnected before any of their bytes is read.
//! * TCP without TLS accepts any process of this host. A listener refuses addresses that other
//!   hosts can reach.
//! * TCP with TLS 1.3 (feature `tls`) accepts peers with a certificate of the given authorities;
//!   both sides present one. Each handshake runs on a thread of its own and has a deadline, so that
//!   a slow peer delays no other. [`Listener::accept`] returns only links whose handshake has
//!   finished.

mod connect;
mod link;
mod listener;
mod options;
mod peer;
mod socket;
mod tcp;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
pub mod tls;
mod unix;

pub use connect::connect;
pub use link::{Closer, Link, Receiver, Sender};
pub use listener::Listener;
pub use options::{ConnectOptions, ListenError, ListenOptions, OnRefusal, Refusal};
pub use peer::Peer;
pub(crate) use peer::PeerIdentity;
