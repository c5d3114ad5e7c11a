//! Byte streams between a page server and its clients, over Unix sockets and TCP.
//!
//! A [`Link`] is a connection whose peer is known. Its two halves are used by two threads at once:
//! one sends while the other waits for what comes. The bytes are the protocol's affair.
//!
//! Who may connect:
//!
//! * over a Unix socket, the users whom [`ListenOptions::users`] lists; the kernel says who asks,
//!   and others are cut off before a byte of theirs is read;
//! * over TCP without TLS, anybody on this host; a listener refuses addresses that other hosts can
//!   reach;
//! * over TCP with TLS 1.3 (feature `tls`), whoever holds a certificate of the given authorities;
//!   both sides show theirs. Handshakes run on threads of their own, each with a deadline, so that
//!   a peer that is slow in it delays nobody; links come out of [`Listener::accept`] with their
//!   peers known.

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
pub use peer::{Peer, PeerIdentity};
