//! The expected contents of the guest's memory.

use kaleidoscope_core::addr::FRAME_BYTES;

/// Words of 8 bytes in a page.
pub(super) const WORDS: u32 = 512;

/// Odd constants without a pattern (digits of the golden ratio, pi and e), so that pages and
/// versions differ in every word.
pub(super) const PAGE: u64 = 0x9e37_79b9_7f4a_7c15;
pub(super) const VERSION: u64 = 0x2437_54a8_885a_3083;
pub(super) const STEP: u64 = 0xadf8_5458_a2bb_4a9b;

/// The file's owner number, distinct from those of the processes.
pub(super) const FILE: u64 = 0xf11e;

/// The first word of a page; each following word is larger by [`STEP`].
pub(super) fn first(owner: u64, page: u32, version: u32) -> u64 {
    seed(owner) ^ u64::from(page).wrapping_mul(PAGE) ^ u64::from(version).wrapping_mul(VERSION)
}

/// The part of a first word that all pages of a process, or of the file, have in common.
pub(super) fn seed(owner: u64) -> u64 {
    (owner + 1).wrapping_mul(0xb7e1_5162_8aed_2a6b)
}

/// Contents of a page.
pub(super) fn page(owner: u64, page: u32, version: u32) -> [u8; FRAME_BYTES] {
    let mut bytes = [0; FRAME_BYTES];
    let mut word = first(owner, page, version);
    for bytes in bytes.as_chunks_mut::<8>().0 {
        *bytes = word.to_le_bytes();
        word = word.wrapping_add(STEP);
    }
    bytes
}
