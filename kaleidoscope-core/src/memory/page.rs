//! The bytes of one frame.

use crate::addr::FRAME_BYTES;

/// The bytes of one frame.
pub type Page = [u8; FRAME_BYTES];

/// A page of zeros.
pub static ZERO_PAGE: Page = [0; FRAME_BYTES];

/// Whether a page is all zeros.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    // Most nonzero pages differ from zero early; comparing block by block exits early and
    // vectorizes.
    page.chunks_exact(256).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}
