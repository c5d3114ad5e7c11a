//! Limits of a recording's size.

use super::region::MAX_STRETCHES;
use crate::codec::container::Bounds;
use crate::codec::text::TextLimits;

/// Bytes of an entry in the payload; in memory an entry takes 72.
const ENTRY_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 1 + 4 + 8;

/// Allowance for the parts of fixed size: kernel identity, palette, unknown fields.
const FIXED_BYTES: u64 = 1 << 20;

/// Bytes of a region without its name and stretches.
const REGION_BYTES: u64 = 72;

/// Bytes of a stretch in the payload, at most.
const STRETCH_BYTES: u64 = 18;

/// Limits of a recording, and thereby of the memory needed to read one. The default admits 16
/// million entries (working sets of 64 GiB) and is the limit of the format: larger recordings are
/// not written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordingLimits {
    /// Most entries.
    pub max_entries: u32,
    /// Most regions.
    pub max_regions: u32,
    /// Most stretches in all regions together.
    pub max_stretches: u32,
    /// Most bytes in one name or other text.
    pub max_text: u32,
    /// Most bytes in all texts together.
    pub max_text_total: u32,
}

impl Default for RecordingLimits {
    fn default() -> Self {
        Self::for_entries(1 << 24)
    }
}

impl RecordingLimits {
    /// Limits for recordings of up to this many entries.
    #[must_use]
    pub fn for_entries(max_entries: u32) -> Self {
        Self {
            max_entries,
            max_regions: max_entries.clamp(1 << 10, 1 << 20),
            max_stretches: max_entries.clamp(1 << 12, 1 << 20),
            max_text: 1 << 14,
            max_text_total: max_entries.saturating_mul(64).clamp(1 << 20, 1 << 27),
        }
    }

    /// Most bytes of uncompressed payload that these limits admit.
    #[must_use]
    pub fn max_payload(&self) -> u64 {
        let part = |count: u32, bytes: u64| u64::from(count).saturating_mul(bytes);
        FIXED_BYTES
            .saturating_add(part(self.max_entries, ENTRY_BYTES))
            .saturating_add(part(self.max_regions, REGION_BYTES))
            .saturating_add(part(self.max_stretches, STRETCH_BYTES))
            .saturating_add(part(self.max_text_total, 1))
    }

    /// Upper bound of the memory taken while reading a recording, in bytes: the file, the payload
    /// and the resulting recording.
    #[must_use]
    pub fn max_memory(&self) -> u64 {
        let Bounds { max_payload, max_file } = self.bounds();
        max_file.saturating_add(max_payload.saturating_mul(4))
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds::for_payload(self.max_payload())
    }

    /// The limits of texts.
    pub(super) fn texts(&self) -> TextLimits {
        TextLimits { max_text: self.max_text, max_total: self.max_text_total }
    }
}

// The limit per region is part of the format.
const _: () = assert!(MAX_STRETCHES <= 256);
