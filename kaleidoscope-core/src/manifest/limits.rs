//! How much a manifest may ask for.

use super::ManifestError;
use super::container::Bounds;
use crate::color::MAX_REGIONS;

/// Bytes of a frame in the payload's columns and in its fingerprints, and more than what is made of
/// them takes in memory.
pub(super) const FRAME_RECORD_BYTES: u64 = 1 + 1 + 1 + 4 + 8 + super::fingerprints::FRAME_BYTES;

/// Room for what does not grow with frames, regions and text: kernel identity, layout, palette,
/// unknown fields.
const FIXED_BYTES: u64 = 1 << 20;

/// Bytes of a region apart from its name: more than either the payload or the map in memory needs.
const REGION_BYTES: u64 = 56;

/// Most frames of a guest whose colors can be kept in a file: 1 TiB of RAM.
const MAX_FRAMES: u32 = 1 << 28;

/// Bounds on what a manifest may hold, and so on the memory that reading one takes.
///
/// The default admits guests of 1 TiB, and is the limit of the format: what exceeds it is not
/// written, so that everything that was written can be read. A reader that knows the guest should
/// allow no more than the guest has: [`Limits::for_frames`], which admits everything that is
/// written for a guest of that size.
///
/// In memory, a map takes 15 bytes for every frame; the payload that it is read from, or written
/// to, takes 15 more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most frames of RAM.
    pub max_frames: u32,
    /// Most regions.
    pub max_regions: u32,
    /// Most bytes in one name or other text.
    pub max_text: u32,
    /// Most bytes in all names and other texts together.
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

    /// Whether a guest of so many frames fits. Costs nothing, so that a program can ask before it
    /// colors a guest.
    ///
    /// # Errors
    /// [`ManifestError::Limit`] when it has too many.
    pub fn admit_frames(&self, frames: u32) -> Result<(), ManifestError> {
        within("frames of RAM", u64::from(frames), self.max_frames)
    }

    /// Most bytes of uncompressed payload that these limits admit.
    #[must_use]
    pub fn max_payload(&self) -> u64 {
        // At most 2^32 * (32 + 56 + 1) + 2^20: far from overflow.
        FIXED_BYTES
            .saturating_add(u64::from(self.max_frames).saturating_mul(FRAME_RECORD_BYTES))
            .saturating_add(u64::from(self.max_regions).saturating_mul(REGION_BYTES))
            .saturating_add(u64::from(self.max_text_total))
    }

    /// Most bytes in a file that these limits admit: what zstd makes of an incompressible payload,
    /// and the header.
    #[must_use]
    pub fn max_file(&self) -> u64 {
        self.bounds().max_file
    }

    /// What the container needs to know.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds::for_payload(self.max_payload())
    }

    /// Bound on the memory taken while reading a manifest, in bytes: the file, the payload, and the
    /// map made of it.
    #[must_use]
    pub fn max_memory(&self) -> u64 {
        self.max_file().saturating_add(self.max_payload().saturating_mul(2))
    }
}

/// Refuses more than the limit.
pub(crate) fn within(what: &'static str, found: u64, limit: u32) -> Result<(), ManifestError> {
    let limit = u64::from(limit);
    if found > limit {
        return Err(ManifestError::Limit { what, found, limit });
    }
    Ok(())
}
