//! Small guests in real machines: what the commands that run them share.

mod world;

pub(crate) use world::{Outcome, World, let_run, rounds};
