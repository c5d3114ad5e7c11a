//! Page server and client over real sockets: both honest, either one hostile.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::cast_possible_truncation, reason = "the tests' own messages are short")]

mod exchange;
mod failover;
mod hostile_client;
mod hostile_server;
mod image;
mod lies;
mod panics;
