//! Clones of VMs that an unmodified QEMU runs, in emulation.
//!
//! Without QEMU the tests say that they were skipped.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::print_stdout, reason = "what a test skips is for people")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test fail by panicking")]

mod clones;
mod command;
mod guest;
mod postcopy;
