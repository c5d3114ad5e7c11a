//! The interface of a prefetch policy.

use super::Planner;
use crate::addr::FrameIndex;

/// How a frame was accessed.
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

/// A clone accessed a frame that is not present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The frame.
    pub frame: FrameIndex,
    /// How it was accessed.
    pub access: Access,
    /// Whether the frame is already being fetched. The fault then waits for that request, and the
    /// plan can only add frames.
    pub in_flight: bool,
}

/// Whether a prefetched frame was used, as far as a clone can tell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PrefetchOutcome {
    /// The clone accessed the frame.
    Used,
    /// The frame was dropped before any access, or the clone ended.
    Unused,
}

/// Decides which frames a clone receives before it faults on them.
///
/// A policy is a deterministic state machine: the same locality order, faults and feedback in the
/// same order give the same plans. It has no clock, does no I/O, and allocates only while it is
/// built. One policy serves one clone.
///
/// ```
/// use kaleidoscope_core::addr::FrameIndex;
/// use kaleidoscope_core::color::ColorMap;
/// use kaleidoscope_core::memory::MemoryLayout;
/// use kaleidoscope_core::prefetch::{Access, Fault, LocalityOrder, Plan, Planner, PrefetchPolicy};
/// use std::sync::Arc;
///
/// /// The frames that follow, at most so many.
/// struct Following(u32);
///
/// impl PrefetchPolicy for Following {
///     fn name(&self) -> &str {
///         "following"
///     }
///
///     fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
///         let locality = planner.locality();
///         let Some(at) = locality.position(fault.frame) else { return };
///         let end = at.saturating_add(self.0).saturating_add(1);
///         for frame in (at..end).filter_map(|position| locality.at(position)) {
///             planner.fetch_used(frame); // Refused if free, present, planned, or over budget.
///         }
///     }
/// }
///
/// let locality: Arc<LocalityOrder> =
///     ColorMap::unknown(MemoryLayout::contiguous(1 << 20)?).into();
/// let mut plan = Plan::new(locality, 256);
/// let (frame, is_absent) = (FrameIndex(7), |frame: FrameIndex| frame.0 != 9);
/// let fault = Fault { frame, access: Access::Write, in_flight: false };
/// Following(3).fault(&fault, &mut plan.begin(&is_absent, Some(frame)));
/// assert_eq!(plan.fetch(), [FrameIndex(8), FrameIndex(10)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait PrefetchPolicy: Send {
    /// Name of the policy, as on the command line.
    fn name(&self) -> &str;

    /// Answers a fault: where the frame's bytes come from, and which other frames to fetch or to
    /// fill with zeros.
    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>);

    /// Plans the next batch to stream while no fault is pending, in descending priority, up to
    /// [`Planner::room`]. Called whenever the connection to the parent has room. An empty plan
    /// means that there is nothing to stream until the next fault.
    fn background(&mut self, planner: &mut Planner<'_>) {
        let _ = planner;
    }

    /// Reports what happened to a prefetched frame. Optional: many clones cannot tell.
    fn feedback(&mut self, frame: FrameIndex, outcome: PrefetchOutcome) {
        let _ = (frame, outcome);
    }
}
