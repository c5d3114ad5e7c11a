//! Real guests that check every byte they own, frozen while they run.

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
mod lazy;
mod local;
mod rust_vmm;
mod staged;
mod store;
mod store_life;
mod store_stage;
