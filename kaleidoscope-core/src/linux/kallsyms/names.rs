//! The stream of compressed names: for each symbol a length and that many token codes.

/// A position in the stream.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    rest: &'a [u8],
}

impl<'a> Names<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet read.
    pub(super) fn remaining(self) -> usize {
        self.rest.len()
    }

    /// Skips `count` names; `None` if the stream ends before.
    pub(super) fn skip_names(mut self, count: usize) -> Option<Self> {
        for _ in 0..count {
            self.next()?;
        }
        Some(self)
    }
}

impl<'a> Iterator for Names<'a> {
    /// The token codes of a name; their text starts with the symbol's type character.
    type Item = &'a [u8];

    /// The length is one byte, or since 6.1 two bytes (low bits first) if bit 7 of the first is
    /// set. Older kernels never set this bit: their names are shorter than 128.
    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let (&low, mut rest) = self.rest.split_first()?;
        let mut length = usize::from(low & 0x7f);
        if low & 0x80 != 0 {
            let (&high, after) = rest.split_first()?;
            length |= usize::from(high) << 7;
            rest = after;
        }
        let (codes, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some(codes)
    }
}
