//! The token table: the text of each of the 256 codes in compressed symbol names.

use crate::linux::bytes::{align_up, u16_at};

/// Number of tokens; a code is one byte.
const TOKENS: usize = 256;

/// Bytes of the index that follows the table: one `u16` offset per token.
pub(super) const INDEX_BYTES: usize = 2 * TOKENS;

/// Maximum length of a table with a 16-bit index, in bytes.
const MAX_TABLE_BYTES: usize = 1 << 16;

/// Code of the token `0`. Digits occur in symbol names, and every character in use stands for
/// itself.
pub(super) const DIGIT_ZERO: usize = 0x30;

/// The ten digits as they appear in the table: the search pattern.
pub(super) const DIGITS: &[u8; 20] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";

/// A validated token table.
pub(super) struct TokenTable<'a> {
    texts: Box<[&'a [u8]; TOKENS]>,
    /// Offset of the table's first byte in the image.
    pub(super) start: usize,
    /// Offset of the end of the index in the image, exclusive.
    pub(super) end: usize,
}

impl<'a> TokenTable<'a> {
    /// Reads the table whose token `0` is at `digits`.
    ///
    /// The 208 tokens from there up lead to the table's end. The index follows, aligned; its entry
    /// for `0` gives the start of the table. All 256 entries must then agree with the NULs of the
    /// table, which does not happen by chance.
    pub(super) fn around(image: &'a [u8], digits: usize) -> Option<Self> {
        let limit = digits.saturating_add(MAX_TABLE_BYTES).min(image.len());
        let tail = image.get(digits..limit)?;
        let last_nul =
            memchr::memchr_iter(0, tail).nth(TOKENS.checked_sub(DIGIT_ZERO)?.checked_sub(1)?)?;
        let table_end = digits.checked_add(last_nul)?.checked_add(1)?;
        // The alignment changed from 8 to 4. Reading at the wrong alignment fails, since the
        // entries of the index do not match.
        [4, 8].into_iter().find_map(|alignment| {
            let index_at = align_up(table_end, alignment)?;
            let zero =
                usize::from(u16_at(image, index_at.checked_add(DIGIT_ZERO.checked_mul(2)?)?)?);
            Self::read(image, digits.checked_sub(zero)?, table_end, index_at)
        })
    }

    /// Reads the table that a hint places at `start`.
    pub(super) fn at(image: &'a [u8], start: usize) -> Option<Self> {
        let limit = start.saturating_add(MAX_TABLE_BYTES).min(image.len());
        let digits = memchr::memmem::find(image.get(start..limit)?, DIGITS)?;
        Self::around(image, start.checked_add(digits)?).filter(|table| table.start == start)
    }

    fn read(image: &'a [u8], start: usize, table_end: usize, index_at: usize) -> Option<Self> {
        let end = index_at.checked_add(INDEX_BYTES)?;
        let entries = image.get(index_at..end)?;
        let table = image.get(start..table_end)?;
        let mut texts: Box<[&[u8]; TOKENS]> = Box::new([&[]; TOKENS]);
        let mut tokens = table.split_inclusive(|&byte| byte == 0);
        let mut expected = 0_usize;
        for (text, entry) in texts.iter_mut().zip(entries.chunks_exact(2)) {
            if usize::from(u16_at(entry, 0)?) != expected {
                return None;
            }
            let token = tokens.next()?;
            expected = expected.checked_add(token.len())?;
            *text = token.strip_suffix(&[0])?;
        }
        Some(Self { texts, start, end })
    }

    /// The text of `code`.
    pub(super) fn text(&self, code: u8) -> &'a [u8] {
        self.texts.get(usize::from(code)).copied().unwrap_or_default()
    }
}
