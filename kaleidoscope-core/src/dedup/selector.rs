//! The interface of a selector.

use crate::addr::FrameIndex;

/// The outcome of hashing a frame that a [`DedupSelector`] selected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SelectionOutcome {
    /// Not hashed: the page is all zeros, or the image lacks it.
    Skipped,
    /// Hashed, and no equal page is known yet. [`Shared`](Self::Shared) may follow.
    Alone,
    /// An equal page is known.
    Shared {
        /// Copies known so far, this frame included: at least 2.
        copies: u32,
    },
    /// It was shared, and a clone wrote to it later.
    Diverged,
}

/// Selects the frames of one guest to hash, those with the highest expected savings first.
///
/// A selector is a deterministic state machine, as a prefetch policy is: it has no clock and does
/// no I/O, and it reads no guest memory. Beside colors and names it knows only the outcomes of the
/// frames that it selected. Hashes made for exploration therefore count against the budget.
pub trait DedupSelector: Send {
    /// The selector's name, as on the command line.
    fn name(&self) -> &str;

    /// Appends up to `room` frames to hash, the most promising first. No frame is selected twice,
    /// and no free frame is selected. A selector may wait for the outcomes of earlier frames before
    /// it selects more. When it selects no frame although it has all outcomes, no remaining frame
    /// is worth hashing.
    fn select(&mut self, room: usize, frames: &mut Vec<FrameIndex>);

    /// Learns the outcomes of frames that it selected, in order. A frame may have several outcomes
    /// over time.
    fn learn(&mut self, outcomes: &[(FrameIndex, SelectionOutcome)]) {
        let _ = outcomes;
    }
}
