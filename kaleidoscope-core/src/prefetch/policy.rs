//! What a prefetch policy is.

use super::Planner;
use crate::addr::FrameIndex;

/// How a frame was touched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Access {
    /// Not known.
    #[default]
    Unknown,
    /// Read or executed.
    Read,
    /// Written.
    Write,
}

/// A clone touched a frame that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The frame.
    pub frame: FrameIndex,
    /// How it was touched.
    pub access: Access,
    /// Whether the frame is on its way already: the fault waits for it, and the plan can only add
    /// to it.
    pub in_flight: bool,
}

/// What became of a prefetched frame, where a clone can tell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PrefetchOutcome {
    /// The clone touched it.
    Used,
    /// It was dropped untouched, or the clone ended.
    Unused,
}

/// Decides what a clone gets before it asks.
///
/// A policy is a deterministic machine: the same locality, faults and feedback in the same order
/// give the same plans. It has no clock, does no I/O, and allocates only while it is built. One
/// serves one clone.
pub trait PrefetchPolicy: Send {
    /// Its name, as on the command line.
    fn name(&self) -> &str;

    /// Answers a fault: how the frame gets its bytes, and which others are to be fetched or filled
    /// with it.
    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>);

    /// What to fetch while nobody waits, most wanted first: the next batch, as much as fits. Called
    /// whenever there is room on the way from the parent; an empty plan means that there is
    /// nothing to stream for now, and the next fault may change that.
    fn background(&mut self, planner: &mut Planner<'_>) {
        let _ = planner;
    }

    /// Learns what became of a frame that it had prefetched. Optional: many clones cannot tell.
    fn feedback(&mut self, frame: FrameIndex, outcome: PrefetchOutcome) {
        let _ = (frame, outcome);
    }
}
