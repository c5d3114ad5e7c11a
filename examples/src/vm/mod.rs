//! Common parts of the commands that run guests on KVM.

pub(crate) mod hints;
mod world;

pub(crate) use world::{Outcome, World, rounds, run_until};

/// Most frames of a clone that are copied before the first write to them.
pub(crate) const MOST_AHEAD: u32 = 4096;
