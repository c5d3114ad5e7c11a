//! Reads and writes little-endian numbers.

/// Reads numbers from the front of a slice. Numbers past its end are zero; callers pass a slice of
/// the exact length.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((value, rest)) => {
                self.0 = rest;
                *value
            }
            None => {
                debug_assert!(false, "the caller checks the length");
                [0; N]
            }
        }
    }

    #[inline]
    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    #[inline]
    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    #[inline]
    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    #[inline]
    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// Fills an array from its front. Bytes that do not fit are dropped; the array has the length of
/// the message.
pub(super) struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    #[inline]
    pub(super) fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    #[inline]
    pub(super) fn put<const M: usize>(mut self, value: [u8; M]) -> Self {
        let end = self.at.saturating_add(M);
        match self.bytes.get_mut(self.at..end) {
            Some(slot) => slot.copy_from_slice(&value),
            None => debug_assert!(false, "the message has room for all of its fields"),
        }
        self.at = end;
        self
    }

    #[inline]
    pub(super) fn finish(self) -> [u8; N] {
        debug_assert_eq!(self.at, N, "every byte of the message is written");
        self.bytes
    }
}

/// At most `most` bytes of a text, cut at a character boundary.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or("")
}
