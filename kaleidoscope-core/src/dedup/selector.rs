//! What a selector is.

use crate::addr::FrameIndex;

/// What became of a frame that a [`DedupSelector`] selected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SelectionOutcome {
    /// It held nothing but zeros, or the image lacked it: it was not hashed.
    Skipped,
    /// It was hashed, and no equal page is known yet. May be followed by [`Shared`](Self::Shared).
    Alone,
    /// An equal page is known.
    Shared {
        /// How many copies there are, this one included: at least 2.
        copies: u32,
    },
    /// It was shared, and then written to.
    Diverged,
}

/// Decides which frames of one guest are worth a hash, the most promising first.
///
/// A selector is a deterministic machine, as a prefetch policy is: no clock, no I/O, and it sees no
/// byte of the guest. All that it knows beside colors and names is what it is told of the frames
/// that it chose, so every hash counts, also those made to find out.
pub trait DedupSelector: Send {
    /// Its name, as on the command line.
    fn name(&self) -> &str;

    /// Appends the next frames to hash, at most `room`, the most promising first. No frame comes
    /// twice, and no free one. It may hold back frames until it has learned of those that it
    /// gave; when it gives none although it has learned of all, nothing is worth a hash
    /// any more.
    fn select(&mut self, room: usize, frames: &mut Vec<FrameIndex>);

    /// Learns what became of frames that it selected, in this order. Of one frame there may be
    /// several outcomes, in time.
    fn learn(&mut self, outcomes: &[(FrameIndex, SelectionOutcome)]) {
        let _ = outcomes;
    }
}
