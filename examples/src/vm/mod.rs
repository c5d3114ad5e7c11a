//! Small guests in real machines: what the commands that run them share.

pub(crate) mod hints;
mod world;

pub(crate) use world::{Outcome, World, let_run, rounds};

/// Frames of a clone that are copied ahead of their being written, at most.
pub(crate) const MOST_AHEAD: u32 = 4096;
