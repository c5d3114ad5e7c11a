//! Reads little-endian numbers at checked offsets.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// `len` bytes at `offset`, or `None` past the end.
pub(super) fn bytes_at(data: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    data.get(usize::try_from(offset).ok()?..end)
}

fn array_at<const N: usize>(data: &[u8], offset: u64) -> Option<[u8; N]> {
    bytes_at(data, offset, N as u64)?.try_into().ok()
}

pub(super) fn u16_at(data: &[u8], offset: u64) -> Option<u16> {
    array_at(data, offset).map(u16::from_le_bytes)
}

pub(super) fn u32_at(data: &[u8], offset: u64) -> Option<u32> {
    array_at(data, offset).map(u32::from_le_bytes)
}

pub(super) fn u64_at(data: &[u8], offset: u64) -> Option<u64> {
    array_at(data, offset).map(u64::from_le_bytes)
}
