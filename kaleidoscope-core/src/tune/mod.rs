//! The tuner: optimizes a policy's parameters on the traces of given guests.
//!
//! The cost is the mean, over all traces, of faults plus `price` times wasted pages, each relative
//! to blind aligned blocks of 16 frames on the same trace. The tuner changes one parameter at a
//! time and keeps improvements (coordinate descent), first of the prediction, then of the windows.
//! Validate the result on other guests than those it was tuned on.

mod bench;
mod descent;
mod judge;
mod predict;
#[cfg(test)]
mod tests;

pub use descent::{Tuner, tune};
pub use judge::{Judge, Score, TracedGuest, touched};
