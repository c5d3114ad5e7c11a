//! Checks of amounts against limits.

use super::ManifestError;

/// Fails if `found` exceeds the limit.
pub(crate) fn within(
    what: &'static str,
    found: u64,
    limit: impl Into<u64>,
) -> Result<(), ManifestError> {
    let limit = limit.into();
    if found > limit {
        return Err(ManifestError::Limit { what, found, limit });
    }
    Ok(())
}

/// A length or number of items as a number of the format.
pub(crate) fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
