//! Texts, whose bytes are limited one by one and together.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::cbor::{Reader, Writer};
use super::{ManifestError, to_u64, within};

/// Limits on the texts of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TextLimits {
    /// Maximum bytes of one text.
    pub(crate) max_text: u32,
    /// Maximum bytes of all texts together.
    pub(crate) max_total: u32,
}

/// Fails if a text or all texts together are too long.
pub(crate) fn check_texts<'a>(
    texts: impl Iterator<Item = &'a str>,
    limits: &TextLimits,
) -> Result<(), ManifestError> {
    let mut total = 0_u64;
    for text in texts {
        let bytes = to_u64(text.len());
        within("bytes in a text", bytes, limits.max_text)?;
        total = total.saturating_add(bytes);
    }
    within("bytes in all texts", total, limits.max_total)
}

/// Tracks the bytes of text that a file may still hold.
pub(crate) struct TextBudget<'a> {
    limits: &'a TextLimits,
    left: u32,
}

impl<'a> TextBudget<'a> {
    /// A budget for one file.
    pub(crate) fn new(limits: &'a TextLimits) -> Self {
        Self { limits, left: limits.max_total }
    }

    /// Reads a text and subtracts its bytes.
    pub(crate) fn read(&mut self, reader: &mut Reader<'_>) -> Result<String, ManifestError> {
        let text = reader.text()?;
        let too_much = |what, limit: u32| ManifestError::Limit {
            what,
            found: to_u64(text.len()),
            limit: u64::from(limit),
        };
        let len = u32::try_from(text.len()).ok().filter(|&len| len <= self.limits.max_text);
        let len = len.ok_or_else(|| too_much("bytes in a text", self.limits.max_text))?;
        let left = self.left.checked_sub(len);
        self.left = left.ok_or_else(|| too_much("bytes in one more text", self.left))?;
        Ok(text.to_owned())
    }
}

/// Writes a list of texts.
pub(crate) fn texts<'a>(out: &mut Writer, texts: impl ExactSizeIterator<Item = &'a str>) {
    out.array(texts.len());
    texts.for_each(|text| out.text(text));
}
