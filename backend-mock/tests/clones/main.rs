//! Clones under every failure: the mock's own promises, and the engine's.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot set up fails")]

mod contracts;
mod failures;
mod give_backs;
mod guest;
mod programs;
mod store;
mod stress;
mod thousand;
