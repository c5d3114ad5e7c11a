//! Hostile guests do no harm: whatever is in a guest's memory, coloring ends in time, takes bounded
//! memory, does not panic, and says something of every frame or why it cannot.
//!
//! [`planted`] puts traps where the kernel's structures are, one test for each. [`random`] damages
//! structures blindly. Both run on synthetic guests; with `KALEIDOSCOPE_GUESTS=DIR`, a folder of
//! folders with `ram.bin`, `layout.txt` and `regs.txt`, [`real`] damages images of real guests too
//! (use `--release`).

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
