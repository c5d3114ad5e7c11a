//! Who may share pages with whom.

use super::{Content, FINGERPRINT_BYTES, Fingerprint, PartialHash};
use crate::memory::{Page, is_zero};
use std::fmt;
use std::io;

/// What a domain's public name is derived under, so that it is a name of nothing else.
const CONTEXT: &str = "kaleidoscope 2026 dedup domain id 1";

/// What the key of an image's own domain is derived under.
const IMAGE: &str = "kaleidoscope 2026 whole image check 1";

/// The same for the seed of its partial hashes.
const PARTIAL: &str = "kaleidoscope 2026 dedup partial hash 1";

/// Guests that may share pages: as a rule those of one tenant. It is a secret key, and whoever has
/// it can tell whether a page that they guess is among the fingerprints.
#[derive(Clone, PartialEq, Eq)]
pub struct Domain {
    key: [u8; 32],
    id: DomainId,
    seed: u64,
}

/// A domain's public name. It says which fingerprints can be compared, and nothing of the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub [u8; 16]);

impl Domain {
    /// The domain of this key, which must be random and secret.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        let id = first_half(&blake3::derive_key(CONTEXT, &key));
        let [a, b, c, d, e, f, g, h, ..] = blake3::derive_key(PARTIAL, &key);
        Self { key, id: DomainId(id), seed: u64::from_le_bytes([a, b, c, d, e, f, g, h]) }
    }

    /// The domain in which all of an image with this digest is checked. Its key is as public as the
    /// digest, so that pages must not be shared by fingerprints of it.
    #[must_use]
    pub fn of_image(digest: &[u8; 32]) -> Self {
        Self::new(blake3::derive_key(IMAGE, digest))
    }

    /// A domain that nobody else has.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self::new(key))
    }

    /// The key, for whoever keeps it for other hosts of the tenant.
    #[must_use]
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The public name.
    #[must_use]
    pub fn id(&self) -> DomainId {
        self.id
    }

    /// A page's fingerprint.
    #[must_use]
    pub fn fingerprint(&self, page: &Page) -> Fingerprint {
        Fingerprint(first_half(blake3::keyed_hash(&self.key, page).as_bytes()))
    }

    /// What a page is: zeros, or its fingerprint.
    #[must_use]
    pub fn content(&self, page: &Page) -> Content {
        if is_zero(page) { Content::Zero } else { Content::Page(self.fingerprint(page)) }
    }

    /// What a page may be: zeros, or its partial hash.
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
