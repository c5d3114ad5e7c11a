//! Deduplication: which frames of the guests of a host are worth a hash, and what that saves.
//!
//! Equal pages are found by their [fingerprints](crate::fingerprint). To fingerprint every frame is
//! dear and mostly in vain; colors, regions and names say where equal pages are:
//!
//! ```text
//!  localities of the host's guests ──► Catalog ──┐
//!  what earlier guests taught  ──► HitRates  ──┴► DedupSelector ──frames──► hashes ──► SharingStatistics
//!                                                    ▲                        │
//!                                                    └───────── SelectionOutcome ──────┘
//! ```
//!
//! What a selector chooses may go through a [`PartialHashFilter`] first: by a few lines of each
//! page it tells which frames can have an equal one, and only those are hashed whole.
//!
//! Names are in the color maps. [`BuildIds`] of programs and libraries, which tell two versions of
//! a file apart, are read from one page of each.
//!
//! Zero and free frames are no part of this: everybody has a page of zeros, and nobody needs the
//! bytes of a free frame.

mod access;
mod adaptive;
mod blind;
mod build_ids;
mod catalog;
mod filter;
mod hit_rates;
mod name_match;
mod paper;
mod selector;
mod sharing;
#[cfg(test)]
mod tests;
mod trial;

pub use access::AccessClass;
pub use adaptive::Adaptive;
pub use blind::Blind;
pub use build_ids::BuildIds;
pub use catalog::{Catalog, GuestNumber};
pub use filter::{PartialHashFilter, PartialMatch};
pub use hit_rates::{ClassHitRate, HitRates, HitRatesError};
pub use name_match::NameMatch;
pub use paper::Paper;
pub use selector::{DedupSelector, SelectionOutcome};
pub use sharing::{ColorTally, SharingStatistics, Tally};
pub use trial::{Point, Trial, TrialGuest, run, run_filtered};
