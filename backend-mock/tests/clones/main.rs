//! Clones under all kinds of failures: tests of the mock, and of the engine.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot set up fails")]

mod contracts;
mod failures;
mod give_backs;
mod guest;
mod programs;
mod store;
mod stress;
mod thousand;
