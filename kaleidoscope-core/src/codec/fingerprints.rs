//! Fingerprints in a payload: an optional part of manifests and descriptors.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ManifestError;
use super::cbor::{Reader, Writer};
use super::fields::fields;
use crate::fingerprint::{DomainId, Fingerprints};

/// The key of the part.
pub(crate) const KEY: &str = "fingerprints";

/// Maximum bytes of the part per frame: a fingerprint, and a bit in each of two sets.
pub(crate) const FRAME_BYTES: u64 = 17;

/// Writes the part with its key.
pub(crate) fn write(out: &mut Writer, fingerprints: &Fingerprints) {
    out.text(KEY);
    out.map(4);
    out.text("zero");
    out.bytes(&fingerprints.zero_set());
    out.text("domain");
    out.bytes(&fingerprints.domain().0);
    out.text("hashed");
    out.bytes(&fingerprints.hashed_set());
    out.text("values");
    out.bytes(&fingerprints.value_bytes());
}

/// Reads the part's value, for a guest with `frames` frames.
pub(crate) fn read(reader: &mut Reader<'_>, frames: u32) -> Result<Fingerprints, ManifestError> {
    let before = reader.moved_to(reader.place());
    let [zero, domain, hashed, values] = fields(reader, ["zero", "domain", "hashed", "values"])?;
    let mut at_domain = reader.moved_to(domain);
    let id = at_domain.bytes()?.try_into().map(DomainId);
    let id = id.map_err(|_| at_domain.error("a domain is a string of 16 bytes"))?;
    let bytes = |offset| reader.moved_to(offset).bytes();
    let (hashed, zero, values) = (bytes(hashed)?, bytes(zero)?, bytes(values)?);
    Fingerprints::from_parts(id, frames, hashed, zero, values)
        .map_err(|error| before.error(error.to_string()))
}
