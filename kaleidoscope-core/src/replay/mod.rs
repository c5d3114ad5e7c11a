//! Replay: evaluates a policy on the accesses of a real clone, without a VM.

mod cost;
mod count;
mod link;
mod metrics;
mod simulator;
#[cfg(test)]
mod tests;
mod trace;
mod written;

pub use cost::{CostError, CostModel};
pub use count::{Counter, Counts};
pub use metrics::{Metrics, Sample};
pub use simulator::{Replay, replay};
pub use trace::{Touch, Trace, TraceError};
pub use written::written_frames;
