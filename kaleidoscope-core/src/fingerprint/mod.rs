//! Fingerprints: short names for the bytes of frames, by which equal pages are found without
//! comparing all of them.
//!
//! ```text
//!  frames of a snapshot guest ──contents──► zero, missing or a Fingerprint each ──► Fingerprints, one small table per guest
//!                 Domain (a key per tenant) ──┘
//! ```
//!
//! # Why a guest cannot cheat
//! A fingerprint is BLAKE3, keyed by the tenant's [`Domain`], cut to 128 bits. Who wants two
//! different pages to count as equal must find a collision, and a guest can neither compute
//! fingerprints, which needs the key, nor see them: they stay with the host. All that it can do is
//! to write pages and hope, and with 2^32 pages a host the chance that any two of them meet by
//! accident is 2^-65. Whoever maps a page in place of another may still compare the bytes first,
//! which costs little beside the hash; nothing here asks for it.
//!
//! # Why a tenant learns nothing of another
//! That a page is shared can be felt: the first write to it takes longer. So pages are shared only
//! within a domain. Equal pages of different domains have different fingerprints and never meet,
//! and neither a file with fingerprints nor a store's index tells those who lack the key what a
//! page holds. Each tenant has a domain of its own unless the host's owner gives one to several.

mod bits;
mod contents;
mod domain;
mod partial;
mod table;
mod whole;

pub use contents::{Content, contents, partial_contents};
pub use domain::{Domain, DomainId};
pub use partial::PartialHash;
pub use table::{Fingerprints, FingerprintsError};
pub use whole::WholeImage;

use std::fmt;

/// Bytes of a fingerprint.
pub const FINGERPRINT_BYTES: usize = 16;

/// The name of a page's bytes within a [`Domain`].
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
