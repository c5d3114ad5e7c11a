//! Deduplication: selects which frames of a host's guests to hash, and counts the pages saved.
//!
//! Equal pages have equal [fingerprints](crate::fingerprint). Fingerprinting every frame is
//! expensive and finds few duplicates per hash; colors, regions and names predict where equal pages
//! are:
//!
//! ```text
//!  localities of a host's guests ─► Catalog ──┐
//!  hit rates of earlier guests ───► HitRates ─┴► DedupSelector ─► frames ─► hashes ─► statistics
//!                                                      ▲                     │
//!                                                      └── SelectionOutcome ─┘
//! ```
//!
//! The selected frames can pass through a [`PartialHashFilter`] first. The partial hash of a page
//! covers a few of its cache lines. Only frames whose partial hash occurs more than once are hashed
//! in full.
//!
//! Names come from the color maps. [`BuildIds`] tell two versions of a program or library apart and
//! are read from one or two pages of each file.
//!
//! Zero and free frames are excluded: zero pages need no sharing, and the contents of free frames
//! are not needed.
//!
//! # Terms
//!
//! * A *class* is a [color](crate::color::Color), a [`NameMatch`] and an [`AccessClass`]. Hit rates
//!   ([`HitRates`]) are learned per class and carry over between guests.
//! * A *candidate group* holds frames of one class at up to 64 neighboring positions of a region.
//!   [`Adaptive`] samples a group before it hashes the rest of it.
//! * A *cluster* is all candidate groups of one class in one directory (files) or one region.
//! * The *hit rate* is the share of hashed frames that have an equal page. The *expected savings*
//!   of a group are the pages saved per hash that its remaining frames are expected to yield.
//! * A *partial hash* covers some lines of a page, a *full hash*
//!   ([`Fingerprint`](crate::fingerprint::Fingerprint)) all of it. Only equal full hashes let two
//!   frames share a page.

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
