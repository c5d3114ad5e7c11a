//! Limits on the size of manifests.

use super::ManifestError;
use crate::codec::container::Bounds;
use crate::codec::text::TextLimits;
use crate::codec::{fingerprints, within};
use crate::color::MAX_REGIONS;

/// Bytes per frame in the payload's columns and fingerprints. The decoded form in memory takes
/// less.
pub(super) const FRAME_RECORD_BYTES: u64 = 1 + 1 + 1 + 4 + 8 + fingerprints::FRAME_BYTES;

/// Room for parts of constant size: kernel identity, layout, palette, unknown fields.
const FIXED_BYTES: u64 = 1 << 20;

/// Bytes per region without its name: more than the payload or the map in memory needs.
const REGION_BYTES: u64 = 56;

/// Maximum number of frames of a guest whose colors can be written: 1 TiB of RAM.
const MAX_FRAMES: u32 = 1 << 28;

/// Limits on the contents of a manifest, which bound the memory that reading one takes.
///
/// The default admits guests of 1 TiB and is the limit of the format: larger manifests are not
/// written, so every manifest that was written can be read. A reader that knows the guest's size
/// should use [`Limits::for_frames`], which admits every manifest that is written for a guest of
/// that size.
///
/// A map takes 15 bytes per frame in memory; the payload that it is read from or written to takes
/// 15 more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Maximum number of RAM frames.
    pub max_frames: u32,
    /// Maximum number of regions.
    pub max_regions: u32,
    /// Maximum bytes of one name or other text.
    pub max_text: u32,
    /// Maximum bytes of all names and other texts together.
    pub max_text_total: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self::for_frames(MAX_FRAMES)
    }
}

impl Limits {
    /// Limits for guests of up to this many frames of RAM: up to one region per frame and 64 KiB of
    /// text per MiB of RAM, each with a floor for small guests and a ceiling for huge ones (16
    /// million regions, 1.5 GiB of text).
    #[must_use]
    pub fn for_frames(max_frames: u32) -> Self {
        Self {
            max_frames,
            max_regions: max_frames.clamp(1 << 14, MAX_REGIONS),
            max_text: 1 << 14,
            max_text_total: max_frames.saturating_mul(256).clamp(1 << 24, 3 << 29),
        }
    }

    /// Checks that a guest with this many frames fits, so that a program can fail before it colors
    /// the guest.
    ///
    /// # Errors
    /// [`ManifestError::Limit`] if it has too many.
    pub fn admit_frames(&self, frames: u32) -> Result<(), ManifestError> {
        within("frames of RAM", u64::from(frames), self.max_frames)
    }

    /// Maximum bytes of uncompressed payload under these limits.
    #[must_use]
    pub fn max_payload(&self) -> u64 {
        // At most 2^32 * (32 + 56 + 1) + 2^20: far from overflow.
        FIXED_BYTES
            .saturating_add(u64::from(self.max_frames).saturating_mul(FRAME_RECORD_BYTES))
            .saturating_add(u64::from(self.max_regions).saturating_mul(REGION_BYTES))
            .saturating_add(u64::from(self.max_text_total))
    }

    /// Maximum bytes of a file under these limits: the zstd frame of an incompressible payload, and
    /// the header.
    #[must_use]
    pub fn max_file(&self) -> u64 {
        self.bounds().max_file
    }

    /// The limits of texts.
    pub(super) fn texts(&self) -> TextLimits {
        TextLimits { max_text: self.max_text, max_total: self.max_text_total }
    }

    /// The bounds of the container.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds::for_payload(self.max_payload())
    }

    /// Maximum memory, in bytes, taken while reading a manifest: the file, the payload, and the
    /// map.
    #[must_use]
    pub fn max_memory(&self) -> u64 {
        self.max_file().saturating_add(self.max_payload().saturating_mul(2))
    }
}
