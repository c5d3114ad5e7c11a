//! Finds the fields of a map.
//!
//! A map is scanned once for the offsets of its fields, and unknown fields are skipped. Then the
//! caller decodes the fields in the order of their dependencies, which need not be their order in
//! the file.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ManifestError;
use super::cbor::Reader;

/// Scans a map with text keys and returns the offsets of the values of `keys`. Other entries are
/// skipped.
pub(crate) fn fields<const N: usize>(
    reader: &mut Reader<'_>,
    keys: [&'static str; N],
) -> Result<[usize; N], ManifestError> {
    let (offsets, []) = fields_and_optional(reader, keys, [])?;
    Ok(offsets)
}

/// The same with additional keys that may be missing.
pub(crate) fn fields_and_optional<const N: usize, const M: usize>(
    reader: &mut Reader<'_>,
    keys: [&'static str; N],
    optional: [&'static str; M],
) -> Result<([usize; N], [Option<usize>; M]), ManifestError> {
    let (mut offsets, mut others) = ([None; N], [None; M]);
    for _ in 0..reader.map()? {
        let key = reader.text()?;
        let needed = keys.iter().zip(&mut offsets);
        let slot = needed.chain(optional.iter().zip(&mut others)).find(|(k, _)| **k == key);
        if let Some((_, offset)) = slot
            && offset.replace(reader.place()).is_some()
        {
            return Err(reader.error(format!("key `{key}` occurs twice")));
        }
        reader.skip()?;
    }
    let mut out = [0; N];
    for ((key, offset), out) in keys.iter().zip(offsets).zip(&mut out) {
        *out = offset.ok_or_else(|| reader.error(format!("key `{key}` is missing")))?;
    }
    Ok((out, others))
}
