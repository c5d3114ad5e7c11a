//! The tuner: finds a policy's numbers on the traces of given guests.
//!
//! What it minimizes is the mean, over all traces, of faults plus `price` times wasted pages, each
//! relative to blind aligned blocks of 16 on the same trace. It changes one number at a time and
//! keeps what helps (coordinate descent), first what to predict, then the windows. Numbers found on
//! some guests must be judged on others.

mod bench;
mod descent;
mod judge;
mod predict;
#[cfg(test)]
mod tests;

pub use descent::{Tuner, tune};
pub use judge::{Judge, Score, TracedGuest, touched};
