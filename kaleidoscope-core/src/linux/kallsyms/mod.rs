//! kallsyms: the symbol table that every kernel carries, located from the image bytes alone.
//!
//! The kernel's build (`scripts/kallsyms.c`) compresses it into a few arrays in read-only data: the
//! *names*, each a length and that many one-byte *tokens*; a *token table* with the text of each
//! token and an *index* of the texts; *markers*, the position of every 256th name; and *offsets*,
//! from which addresses are computed. Their order and the address computation changed over time
//! (*base* is `kallsyms_relative_base`; arrays in brackets are optional):
//!
//! | kernel | order in memory | address of symbol i |
//! |---|---|---|
//! | 5.4 to 6.3 | offsets, base, count, names, markers, \[sequence\], tokens, index | see below |
//! | 6.4 to 6.14 | count, names, markers, tokens, index, offsets, base, \[sequence\] | see below |
//! | from 6.15 | the same | base + offset, per-CPU symbols are ordinary |
//! | 7.x | the same without base | address of offset i + offset i, signed |
//!
//! The arrays are aligned to 8 bytes, and in 7.x to 4 bytes. With per-CPU symbols (x86-64 before
//! 6.15), a negative offset means base - 1 - offset, and other offsets are per-CPU offsets; without
//! them (arm64), all offsets are unsigned distances from the base. The version number is not used:
//! [`Kallsyms::find`] tries all layouts and selects the one that puts `linux_banner` on the
//! banner's text.

mod hash;
mod lookup;
mod names;
mod search;
#[cfg(test)]
pub(super) mod synthetic;
#[cfg(test)]
mod tests;
mod tokens;

use super::bytes::{address, index, u32_at};
use crate::addr::Gva;
pub(crate) use hash::{NameHash, PADDING};
use lookup::Matcher;
use names::Names;
use thiserror::Error;
use tokens::TokenTable;

/// Number of names between two markers.
const NAMES_PER_MARKER: usize = 256;

/// Maximum length of an expanded symbol name in bytes: the kernel's `KSYM_NAME_LEN` since 6.1.
pub const MAX_NAME_BYTES: usize = 512;

/// Why no symbol table could be read. Reports the furthest stage that any candidate reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Error)]
#[allow(clippy::enum_variant_names, reason = "linted only where the type is not exported")]
pub enum KallsymsError {
    /// Nothing in the image looks like a token table.
    #[error("no kallsyms token table in the {image_bytes:#x} bytes of kernel image at {image}")]
    NoTokenTable {
        /// Virtual address of the searched image.
        image: Gva,
        /// Length of the image in bytes.
        image_bytes: usize,
    },
    /// There is a token table, but no names and markers before it.
    #[error("no kallsyms names and markers before the token table at {token_table}")]
    NoNames {
        /// Virtual address of the token table.
        token_table: Gva,
    },
    /// There are names, but no known layout gives the symbols addresses in the image.
    #[error("no known kallsyms layout gives the {symbols} symbols at {names} plausible addresses")]
    NoAddresses {
        /// Virtual address of the compressed names.
        names: Gva,
        /// Number of symbols.
        symbols: usize,
    },
}

/// Information from the caller. A wrong hint only costs time.
#[derive(Debug, Clone, Copy, Default)]
pub struct KallsymsHints {
    /// Address of the token table, from VMCOREINFO since 6.0 (`SYMBOL(kallsyms_token_table)`).
    pub token_table: Option<Gva>,
    /// Start of read-only data, which is searched first.
    pub read_only_data: Option<Gva>,
}

/// The computation of an address from an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// Negative offsets are relative to `base`; other offsets are per-CPU offsets.
    AbsolutePerCpu {
        /// The kernel's `kallsyms_relative_base`.
        base: Gva,
    },
    /// Offsets are unsigned distances from `base`.
    BaseRelative {
        /// The kernel's `kallsyms_relative_base`.
        base: Gva,
    },
    /// Offsets are signed distances from their own location; the first one is at `offsets`.
    SelfRelative {
        /// The kernel's `kallsyms_offsets`.
        offsets: Gva,
    },
}

impl Addressing {
    /// The address of symbol `i` with this offset. Hostile offsets wrap around.
    fn address(self, i: usize, offset: u32) -> Gva {
        let signed = i64::from(offset.cast_signed());
        Gva(match self {
            Self::AbsolutePerCpu { base } if signed < 0 => {
                base.0.wrapping_sub(1).wrapping_sub(signed.cast_unsigned())
            }
            Self::AbsolutePerCpu { .. } => u64::from(offset),
            Self::BaseRelative { base } => base.0.wrapping_add(u64::from(offset)),
            Self::SelfRelative { offsets } => offsets
                .0
                .wrapping_add(address(i).wrapping_mul(4))
                .wrapping_add(signed.cast_unsigned()),
        })
    }
}

/// One symbol, expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Its address at run time. For per-CPU symbols of x86-64 kernels before 6.15, the offset in
    /// the per-CPU area.
    pub address: Gva,
    /// The letter that `nm` prints: `T` text, `D` data, `R` read-only data, `B` zeroed data, `A`
    /// absolute; lower case for local symbols.
    pub kind: char,
    /// Its name, truncated to [`MAX_NAME_BYTES`].
    pub name: String,
}

/// A symbol table in a kernel image. Symbols are sorted by address.
pub struct Kallsyms<'a> {
    tokens: TokenTable<'a>,
    /// The names, up to the markers.
    names: &'a [u8],
    /// One `u32` position in `names` per block of 256 names.
    markers: &'a [u8],
    /// One `u32` per symbol.
    offsets: &'a [u8],
    addressing: Addressing,
    count: usize,
}

impl std::fmt::Debug for Kallsyms<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kallsyms")
            .field("count", &self.count)
            .field("addressing", &self.addressing)
            .finish_non_exhaustive()
    }
}

impl<'a> Kallsyms<'a> {
    /// Finds the symbol table in `image`, the bytes of the kernel image from its first virtual
    /// address `image_va` (at run time) up.
    ///
    /// # Errors
    /// If no table is found; the error reports the furthest stage that any candidate reached.
    pub fn find(
        image: &'a [u8],
        image_va: Gva,
        hints: &KallsymsHints,
    ) -> Result<Self, KallsymsError> {
        search::find(image, image_va, hints)
    }

    /// Number of symbols.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no symbols. Always false for tables that [`find`](Self::find) returns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How this kernel encodes addresses.
    #[must_use]
    pub fn addressing(&self) -> Addressing {
        self.addressing
    }

    /// Address of symbol `i`, or `None` past the last.
    #[must_use]
    pub fn address(&self, i: usize) -> Option<Gva> {
        Some(self.addressing.address(i, u32_at(self.offsets, i.checked_mul(4)?)?))
    }

    /// Symbol `i`, expanded, or `None` past the last.
    #[must_use]
    pub fn symbol(&self, i: usize) -> Option<Symbol> {
        let address = self.address(i)?;
        let block = i.checked_div(NAMES_PER_MARKER)?;
        let marker = index(u32_at(self.markers, block.checked_mul(4)?)?);
        let mut names =
            Names::new(self.names.get(marker..)?).skip_names(i.checked_rem(NAMES_PER_MARKER)?)?;
        Some(self.expand(address, names.next()?))
    }

    /// Addresses of the `wanted` names, in the order of `wanted`; for a name that occurs several
    /// times, the lowest address.
    ///
    /// All names are found in one pass over the compressed names, which costs little more for
    /// hundreds of names than for one.
    #[must_use]
    pub fn lookup(&self, wanted: &[&str]) -> Vec<Option<Gva>> {
        let mut addresses = vec![None; wanted.len()];
        let mut missing = wanted.len();
        if missing == 0 {
            return addresses;
        }
        Matcher::new(&self.tokens, wanted).run(self.all_names(), |i, at| {
            if let Some(slot @ None) = addresses.get_mut(at) {
                *slot = self.address(i);
                missing = missing.saturating_sub(usize::from(slot.is_some()));
            }
            missing > 0
        });
        addresses
    }

    /// The last symbol at or before `va`, which contains `va` if `va` is in the image. If several
    /// symbols share the address, the first of them.
    #[must_use]
    pub fn symbol_at(&self, va: Gva) -> Option<Symbol> {
        let last = self.first_symbol(|address| address > va).checked_sub(1)?;
        let address = self.address(last)?;
        self.symbol(self.first_symbol(|other| other >= address))
    }

    /// All symbols in order of address.
    pub fn iter(&self) -> impl Iterator<Item = Symbol> + '_ {
        self.all_names()
            .enumerate()
            .map_while(|(i, codes)| Some(self.expand(self.address(i)?, codes)))
    }

    fn all_names(&self) -> std::iter::Take<Names<'a>> {
        Names::new(self.names).take(self.count)
    }

    /// The first symbol whose address satisfies `reached`, which must be monotonic. Binary search.
    fn first_symbol(&self, reached: impl Fn(Gva) -> bool) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.address(middle).is_none_or(&reached) {
                high = middle;
            } else {
                low = middle.saturating_add(1);
            }
        }
        low
    }

    fn expand(&self, address: Gva, codes: &[u8]) -> Symbol {
        let mut text =
            codes.iter().flat_map(|&code| self.tokens.text(code)).map(|&byte| char::from(byte));
        let kind = text.next().unwrap_or('?');
        Symbol { address, kind, name: text.take(MAX_NAME_BYTES).collect() }
    }
}
