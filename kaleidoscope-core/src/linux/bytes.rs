//! Checked little-endian reads from hostile bytes.

/// The `N` bytes at `at`, or `None` if `bytes` is too short.
pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The little-endian `u16` at byte `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

/// The little-endian `u32` at byte `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

/// The little-endian `u64` at byte `at`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

/// A `u32` as an index. Lossless: the crate supports only targets of at least 32 bits.
pub(super) const fn index(value: u32) -> usize {
    const { assert!(usize::BITS >= 32) };
    value as usize
}

/// An offset or a distance in bytes, as part of an address. Lossless: `usize` has at most 64 bits.
pub(super) const fn address(value: usize) -> u64 {
    const { assert!(usize::BITS <= 64) };
    value as u64
}

/// `value` rounded up to a multiple of `to` (a power of two); `None` on overflow.
pub(super) const fn align_up(value: usize, to: usize) -> Option<usize> {
    value.checked_next_multiple_of(to)
}
