//! Hashes of all names in one pass, without expanding the names.
//!
//! The hash is a polynomial over the bytes of the name, so the hash of two concatenated texts
//! follows from the hashes of the texts. Each token is hashed once, and a name costs one
//! multiplication and one addition per token, independent of its division into tokens.

use super::Kallsyms;
use super::tokens::TokenTable;
use crate::addr::Gva;

/// The point at which the polynomial is evaluated: 2^64 divided by the golden ratio, an odd number
/// with many bits set.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// Prefix of the symbols that mark the padding before a function (`CONFIG_FUNCTION_PADDING_BYTES`,
/// since 6.3).
pub(crate) const PADDING: &[u8] = b"__pfx_";

/// Hash of a symbol's name. Unkeyed: the author of a kernel can make two names collide.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct NameHash {
    hash: u64,
    /// `BASE` to the power of the length.
    power: u64,
}

impl NameHash {
    const EMPTY: Self = Self { hash: 0, power: 1 };

    /// The hash of a name.
    pub(crate) fn of(name: &[u8]) -> Self {
        name.iter().fold(Self::EMPTY, |so_far, &byte| {
            // No byte counts as 0, so that leading bytes are never lost.
            so_far.then(Self { hash: u64::from(byte).wrapping_add(1), power: BASE })
        })
    }

    /// The hash of this text followed by `next`.
    #[inline]
    pub(crate) fn then(self, next: Self) -> Self {
        let hash = self.hash.wrapping_mul(next.power).wrapping_add(next.hash);
        Self { hash, power: self.power.wrapping_mul(next.power) }
    }

    /// The high and low half of the hash. Both depend on every byte.
    #[inline]
    pub(crate) fn halves(self) -> (u32, u32) {
        // The last byte was only added. Multiplying spreads it to more than the lowest bits.
        let [a, b, c, d, e, f, g, h] = self.hash.wrapping_mul(BASE).to_le_bytes();
        (u32::from_le_bytes([e, f, g, h]), u32::from_le_bytes([a, b, c, d]))
    }
}

/// Hashes of all tokens.
struct TokenHashes {
    /// Hashes without the first byte, for the first token of a name, whose first byte is the
    /// symbol's type.
    first: [NameHash; 256],
    rest: [NameHash; 256],
}

impl TokenHashes {
    fn new(tokens: &TokenTable<'_>) -> Box<Self> {
        let mut out = Self { first: [NameHash::EMPTY; 256], rest: [NameHash::EMPTY; 256] };
        for (code, (first, rest)) in (0..=u8::MAX).zip(out.first.iter_mut().zip(&mut out.rest)) {
            let text = tokens.text(code);
            *first = NameHash::of(text.get(1..).unwrap_or_default());
            *rest = NameHash::of(text);
        }
        Box::new(out)
    }

    #[inline]
    fn of(&self, codes: &[u8]) -> Option<NameHash> {
        let (&first, rest) = codes.split_first()?;
        let first = *self.first.get(usize::from(first))?;
        rest.iter()
            .try_fold(first, |so_far, &code| Some(so_far.then(*self.rest.get(usize::from(code))?)))
    }
}

impl Kallsyms<'_> {
    /// Address and hash of every symbol in table order, excluding function padding.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = (Gva, NameHash)> + '_ {
        let hashes = TokenHashes::new(&self.tokens);
        let padding = PaddingTest::new(&self.tokens);
        let symbols = self.all_names().enumerate();
        symbols.filter_map(move |(i, codes)| {
            if padding.is_padding(codes) {
                return None;
            }
            Some((self.address(i)?, hashes.of(codes)?))
        })
    }
}

/// Detects names that start with [`PADDING`].
struct PaddingTest<'t> {
    tokens: &'t TokenTable<'t>,
    /// For each first token, whether the name may start with [`PADDING`].
    is_possible: [bool; 256],
}

impl<'t> PaddingTest<'t> {
    fn new(tokens: &'t TokenTable<'t>) -> Self {
        let mut is_possible = [false; 256];
        for (code, possible) in (0..=u8::MAX).zip(&mut is_possible) {
            // The first byte is the symbol's type.
            let text = tokens.text(code).get(1..).unwrap_or_default();
            *possible = PADDING.starts_with(text) || text.starts_with(PADDING);
        }
        Self { tokens, is_possible }
    }

    #[inline]
    fn is_padding(&self, codes: &[u8]) -> bool {
        let first = codes.first().and_then(|&first| self.is_possible.get(usize::from(first)));
        first == Some(&true) && self.starts_with_padding(codes)
    }

    /// Compares token by token, and only as many tokens as needed.
    fn starts_with_padding(&self, codes: &[u8]) -> bool {
        let mut left = PADDING;
        let mut type_bytes = 1;
        for &code in codes {
            let text = self.tokens.text(code);
            let name = text.get(type_bytes..).unwrap_or_default();
            type_bytes = 0;
            match left.strip_prefix(name) {
                Some(rest) if !rest.is_empty() => left = rest,
                Some(_) => return true,
                None => return name.starts_with(left),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::kallsyms::KallsymsHints;
    use crate::linux::kallsyms::synthetic::{self, BASE as IMAGE, LAYOUTS};

    #[test]
    fn names_hash_the_same_however_they_are_cut() {
        let names: Vec<String> = (0..600)
            .map(|i| match i % 5 {
                0 => format!("__pfx_sys_{i}"),
                1 => format!("__page_{i}"),
                2 => format!("lock_{i}"),
                3 => format!("__p{i}"),
                _ => format!("get_page_in_{i}"),
            })
            .collect();
        for (kernel, layout) in LAYOUTS {
            let image = synthetic::image(layout, &names);
            let table =
                Kallsyms::find(&image.image, Gva(IMAGE), &KallsymsHints::default()).unwrap();
            let expected = image.entries.iter().filter(|e| !e.name.starts_with("__pfx_"));
            let expected: Vec<_> =
                expected.map(|e| (Gva(e.address), NameHash::of(e.name.as_bytes()))).collect();
            assert_eq!(table.hashes().collect::<Vec<_>>(), expected, "{kernel}");
            assert_eq!(expected.len(), 600 - 120 + 1);
        }
    }

    #[test]
    fn different_names_differ() {
        let names = ["", "a", "aa", "ab", "ba", "jiffies", "jiffies+1", "\0", "\0\0"];
        for (i, a) in names.iter().enumerate() {
            for b in names.iter().skip(i + 1) {
                assert_ne!(NameHash::of(a.as_bytes()), NameHash::of(b.as_bytes()), "{a} {b}");
            }
        }
        let parts = NameHash::of(b"sche").then(NameHash::of(b"")).then(NameHash::of(b"dule"));
        assert_eq!(parts, NameHash::of(b"schedule"));
    }
}
