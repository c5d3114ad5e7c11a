//! Tests with real guests that check every byte of their memory and are snapshotted while they run.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's figures, and what it skips, are for people"
)]

mod ahead;
mod colors;
mod common;
mod devices;
mod hooks;
mod huge;
mod local;
mod on_demand;
mod rust_vmm;
mod staged;
mod store;
mod store_life;
mod store_stage;
