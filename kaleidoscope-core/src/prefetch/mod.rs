//! Prefetch: what a clone gets before it asks.
//!
//! A [`PrefetchPolicy`] is told of every fault and fills a [`Plan`]; between faults it is asked what to stream. It sees the
//! guest through an [`Atlas`], in which related frames are neighbors.

mod atlas;
mod blind;
mod oracle;
mod paper;
mod plan;
mod policy;

pub use atlas::{Atlas, Place};
pub use blind::{Blind, Demand};
pub use oracle::Oracle;
pub use paper::{Paper, Shape};
pub use plan::{Answer, Plan, Planner, Presence};
pub use policy::{Access, Fault, Outcome, PrefetchPolicy};
