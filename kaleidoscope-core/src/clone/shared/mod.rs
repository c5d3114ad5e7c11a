//! Clones of one parent on the same host share the pages that they fetch.
//!
//! Clones of one parent need mostly the same pages. [`Shared`] sits between them and the connection
//! to the parent: a frame that a clone requests is transferred once, cached, and delivered to every
//! clone that requests it, then or later. Each clone has a [`Sibling`], which is a [`PageSource`]
//! like any other.
//!
//! One thread receives from upstream, stores the pages and wakes the siblings that wait for them;
//! it never waits for a sibling. A slow or dead sibling therefore does not delay the others.
//! Receiving in the siblings' own threads would save a context switch for each uncached page, but a
//! sibling that waits upstream for one page could not be told that another page is already cached.
//!
//! # Memory
//! At most `bound` pages are cached, with CLOCK replacement: a page that was requested since the
//! hand last passed it stays. A page that was evicted and is requested again is transferred again.
//! In addition, each sibling holds up to [`HELD`] delivered pages that it has not taken yet, so
//! that it makes progress however small the bound is. A page takes 4 KiB and some 60 bytes;
//! frames that are all zeros take none.
//!
//! Cached bytes are those that upstream delivered: whatever it verifies (a checksum per page, an
//! image's identity) is verified once, and no guest can write to them.

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
