//! Siblings on one host share what they fetch.
//!
//! Clones of one parent need much the same pages. [`Shared`] stands between them and the way to the
//! parent: a frame that one of them asks for crosses that way once, is kept, and is handed to
//! whoever asked, then or later. Each clone has a [`Sibling`], which is a [`PageSource`] like any
//! other.
//!
//! One thread receives from upstream, stores what comes and wakes those who wait for it; it never
//! waits for a sibling. A sibling that is slow or dead therefore costs the others nothing.
//! Receiving in the siblings' own threads would save a change of threads for each page that is not
//! kept yet, but a sibling that waits upstream for one page could not be told that another one
//! is here already.
//!
//! # Memory
//! At most `bound` pages are kept, in a clock: a page that was asked for since the hand came by
//! last stays. A page that was evicted and is asked for again crosses again. Apart from that, each
//! sibling holds up to [`HELD`] pages that came and that it has not taken yet, so that it gets on
//! however small the bound is. A page takes 4 KiB and some 60 bytes; frames that are all zeros take
//! none.
//!
//! Bytes that are kept are those that upstream handed over: whatever it verifies (a checksum per
//! page, an image's identity) is verified once, and no guest can write to them.

mod pages;
mod receiver;
mod sibling;
#[cfg(test)]
mod tests;
mod waiting;

pub use receiver::{Shared, SharedStatistics};
pub use sibling::Sibling;
pub use waiting::HELD;

#[cfg(doc)]
use crate::clone::ports::PageSource;
