//! Fingerprints: 128-bit keyed hashes of frames, by which equal pages are found without comparing
//! all of them.
//!
//! ```text
//!  frames of a snapshot ──contents──► zero, missing or Fingerprint ──► Fingerprints (one table
//!            Domain (a key per tenant) ──┘                              per guest)
//! ```
//!
//! # Why a guest cannot cheat
//! A fingerprint is the BLAKE3 hash of a page, keyed by the tenant's [`Domain`] and truncated to
//! 128 bits. To make two different pages count as equal, a guest needs a collision. A guest can
//! neither compute fingerprints, because it lacks the key, nor see them, because they stay with the
//! host. It can only write pages and hope: with 2^32 pages per host, the probability that any two
//! collide by accident is 2^-65. Code that maps one page in place of another may compare the bytes
//! as well, which costs little beside the hash; this module does not require it.
//!
//! # Why a tenant learns nothing about another
//! Page sharing is observable: the first write to a shared page takes longer. So pages are shared
//! only within a domain. Equal pages of different domains have different fingerprints. Neither a
//! file with fingerprints nor a store's index reveals the contents of a page without the key. Each
//! tenant has its own domain unless the host's owner assigns one to several tenants.

mod bits;
mod contents;
mod domain;
mod partial;
mod table;
mod whole;

#[cfg(feature = "dedup")]
pub use contents::partial_contents;
pub use contents::{Content, contents};
pub use domain::{Domain, DomainId};
#[cfg(not(feature = "dedup"))]
pub(crate) use partial::PartialHash;
#[cfg(feature = "dedup")]
pub use partial::PartialHash;
pub use table::{Fingerprints, FingerprintsError};
#[cfg(feature = "dedup")]
pub use whole::WholeImage;

use std::fmt;

/// Size of a fingerprint in bytes.
pub const FINGERPRINT_BYTES: usize = 16;

/// The fingerprint (full hash) of a page within a [`Domain`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; FINGERPRINT_BYTES]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}
