//! Deduplication: which frames of the guests of a host are worth a hash, and what that saves.
//!
//! Equal pages are found by their [fingerprints](crate::fingerprint). To fingerprint every frame is dear and mostly in vain; colors, regions and
//! names say where equal pages are:
//!
//! ```text
//!  atlases of the host's guests ──► Catalog ──┐
//!  what earlier guests taught  ──► Yields  ──┴► DedupSelector ──frames──► hashes ──► Ledger
//!                                                    ▲                        │
//!                                                    └───────── Outcome ──────┘
//! ```
//!
//! What a selector chooses may go through a [`Sieve`] first: by a few lines of each page it tells which frames can have an equal one, and only those
//! are hashed whole.
//!
//! Names are in the color maps. [`BuildIds`] of programs and libraries, which tell two versions of a file apart, are read from one page of each.
//!
//! Zero and free frames are no part of this: everybody has a page of zeros, and nobody needs the bytes of a free frame.

mod adaptive;
mod blind;
mod build_ids;
mod catalog;
mod heat;
mod ledger;
mod paper;
mod relation;
mod selector;
mod sieve;
#[cfg(test)]
mod tests;
mod trial;
mod yields;

pub use adaptive::Adaptive;
pub use blind::Blind;
pub use build_ids::BuildIds;
pub use catalog::{Catalog, GuestNumber};
pub use heat::Heat;
pub use ledger::{ColorTally, Ledger, Tally};
pub use paper::Paper;
pub use relation::Relation;
pub use selector::{DedupSelector, Outcome};
pub use sieve::{Alike, Sieve};
pub use trial::{Point, Subject, Trial, run, run_sieved};
pub use yields::{ClassYield, Yields, YieldsError};
