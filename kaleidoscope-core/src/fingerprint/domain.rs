//! Deduplication domains: groups of guests that may share pages.

use super::{Content, FINGERPRINT_BYTES, Fingerprint, PartialHash};
use crate::memory::{Page, is_zero};
use std::fmt;
use std::io;

/// BLAKE3 derivation context of a domain's public id.
const ID_CONTEXT: &str = "kaleidoscope 2026 dedup domain id 1";

/// BLAKE3 derivation context of the key of an image's domain.
const IMAGE_CONTEXT: &str = "kaleidoscope 2026 whole image check 1";

/// BLAKE3 derivation context of the seed of partial hashes.
const PARTIAL_CONTEXT: &str = "kaleidoscope 2026 dedup partial hash 1";

/// A group of guests that may share pages, usually those of one tenant. It is a secret key: any
/// holder of the key can test whether a guessed page is among the fingerprints.
#[derive(Clone, PartialEq, Eq)]
pub struct Domain {
    key: [u8; 32],
    id: DomainId,
    seed: u64,
}

/// A domain's public id. It tells which fingerprints are comparable and reveals nothing about the
/// key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub [u8; 16]);

impl Domain {
    /// A domain with this key, which must be random and secret.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        let id = first_half(&blake3::derive_key(ID_CONTEXT, &key));
        let [a, b, c, d, e, f, g, h, ..] = blake3::derive_key(PARTIAL_CONTEXT, &key);
        Self { key, id: DomainId(id), seed: u64::from_le_bytes([a, b, c, d, e, f, g, h]) }
    }

    /// The domain for checking all of an image with this digest. Its key is as public as the
    /// digest, so its fingerprints must not be used to share pages.
    #[must_use]
    pub fn of_image(digest: &[u8; 32]) -> Self {
        Self::new(blake3::derive_key(IMAGE_CONTEXT, digest))
    }

    /// A domain with a new random key.
    ///
    /// # Errors
    /// If the system cannot supply random numbers.
    pub fn random() -> io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self::new(key))
    }

    /// The secret key, to be stored for other hosts of the tenant.
    #[must_use]
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The public id.
    #[must_use]
    pub fn id(&self) -> DomainId {
        self.id
    }

    /// A page's fingerprint.
    #[must_use]
    pub fn fingerprint(&self, page: &Page) -> Fingerprint {
        Fingerprint(first_half(blake3::keyed_hash(&self.key, page).as_bytes()))
    }

    /// A page's contents: zeros, or the fingerprint.
    #[must_use]
    pub fn content(&self, page: &Page) -> Content {
        if is_zero(page) { Content::Zero } else { Content::Page(self.fingerprint(page)) }
    }

    /// A page's partial contents: zeros, or the partial hash.
    #[must_use]
    pub fn partial_content(&self, page: &Page) -> Content<PartialHash> {
        PartialHash::of(page, self.seed).map_or(Content::Zero, Content::Page)
    }
}

fn first_half(hash: &[u8; 32]) -> [u8; FINGERPRINT_BYTES] {
    let mut half = [0; FINGERPRINT_BYTES];
    half.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
    half
}

impl fmt::Debug for Domain {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({})", self.id)
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_share_nothing_and_show_no_key() {
        let (one, other) = (Domain::new([7; 32]), Domain::new([8; 32]));
        let page = [1; 4096];
        assert_ne!(one.fingerprint(&page), other.fingerprint(&page));
        assert_ne!(one.id(), other.id());
        assert_eq!(one.fingerprint(&page), Domain::new([7; 32]).fingerprint(&page));
        assert!(!format!("{one:?}").contains("0707"));
        assert_ne!(Domain::random().unwrap(), Domain::random().unwrap());
    }

    #[test]
    fn a_fingerprint_is_the_start_of_the_keyed_hash() {
        let page = [3; 4096];
        let mut hasher = blake3::Hasher::new_keyed(&[9; 32]);
        page.chunks(100).for_each(|part| {
            hasher.update(part);
        });
        let fingerprint = Domain::new([9; 32]).fingerprint(&page);
        assert_eq!(fingerprint.0, hasher.finalize().as_bytes()[..16]);
    }
}
