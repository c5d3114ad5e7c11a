//! Hostile guests: whatever a guest's memory contains, coloring ends in bounded time and memory,
//! does not panic, and colors every frame or reports why it cannot.
//!
//! [`planted`] plants a trap where one part of the introspection reads, one test for each.
//! [`random`] damages structures at random. Both run on synthetic guests. With
//! `KALEIDOSCOPE_GUESTS=DIR`, a folder of folders with `ram.bin`, `layout.txt` and `regs.txt`,
//! [`real`] damages images of real guests as well (use `--release`).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's figures, and what it skips, are for people"
)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod damage;
mod meter;
mod planted;
mod random;
mod real;
mod target;
