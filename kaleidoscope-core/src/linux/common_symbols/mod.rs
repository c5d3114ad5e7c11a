//! Kernel functions and variables that every workload uses, and the pages of a kernel image that
//! hold them.
//!
//! In every workload, the kernel schedules, enters and leaves system calls, and handles faults. The
//! location of this code and data differs between kernels, but the symbol names stay. The list
//! gives for each symbol how often a clone touched the page that holds it; it was learned from
//! traces of real clones ([`learn`]) and is compiled in. For a new kernel, the score of a page is
//! the mean heat of all symbols in the page, where unlisted symbols count as 0.
//!
//! Accuracy, with a list learned from three of the Debian kernels 5.10, 6.1, 6.12 and 7.2 and
//! evaluated on clones of the fourth: a trace touched 84 to 91 % of the
//! [common](crate::color::Temperature::COMMON) kernel text and 68 to 88 % of the common kernel
//! data. [Frequent](crate::color::Temperature::FREQUENT) pages received 87 to 94 % of the touches
//! of kernel text and 86 to 95 % of the touches of kernel data. Predictions for read-only data are
//! less accurate: it is frequent at most, and touched half the time.
//!
//! ```text
//!  traces, symbols ─ learn ─► SymbolScores ─ list ─► common_symbols.txt
//!    ─► CommonSymbols ─ score ─► hints of pages
//! ```

mod by_page;
mod learn;
mod list;
mod score;

pub use by_page::SymbolsByPage;
pub use learn::{Lesson, Pruning, learn};
pub use list::{CommonSymbolsError, SymbolScores};
pub(super) use score::hints_of_pages;

use super::bytes::index;
use super::kallsyms::NameHash;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// The list that ships with the library.
const SHIPPED: &str = include_str!("../common_symbols.txt");

/// Number of hash bits that select the bit in [`Table::seen`].
const SEEN_BITS: u32 = 18;

/// Mask of the heat in a slot.
const HEAT_MASK: u32 = 0xf;

/// A list of symbols with their heat, in a hash table. Clones share the table.
#[derive(Clone)]
pub struct CommonSymbols(Arc<Table>);

/// A hash table with open addressing.
struct Table {
    /// A power of two of slots, at least a quarter of them 0. Other slots hold the low half of a
    /// name's hash, with the heat in tenths in the lowest bits. The high half selects the slot. The
    /// table is small because it is not cached when coloring starts.
    slots: Vec<u32>,
    count: usize,
    /// One bit for each value of the hashes' high bits, set if there is a symbol. Most names of a
    /// kernel are not in the list; this 32 KiB filter, which fits into the L1 cache, rejects them.
    seen: Vec<u64>,
}

impl Default for CommonSymbols {
    /// The list that ships with the library.
    fn default() -> Self {
        static DEFAULT: OnceLock<CommonSymbols> = OnceLock::new();
        // A test parses the list. If the list were broken regardless, use an empty list.
        DEFAULT.get_or_init(|| Self::parse(SHIPPED).unwrap_or_else(|_| Self::none())).clone()
    }
}

impl CommonSymbols {
    /// An empty list: no frame is marked as holding common symbols, and lookups are skipped.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(Table { slots: Vec::new(), count: 0, seen: Vec::new() }))
    }

    /// Reads a list in the format of [`SymbolScores::to_text`].
    ///
    /// # Errors
    /// [`CommonSymbolsError`], with the line number of a malformed line.
    pub fn parse(text: &str) -> Result<Self, CommonSymbolsError> {
        let mut hashes = Vec::new();
        list::read(text, |name, tenths| hashes.push((NameHash::of(name), tenths)))?;
        Ok(Self::of_hashes(&hashes))
    }

    /// Number of symbols.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.count
    }

    /// Whether there are no symbols.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.count == 0
    }

    /// If several hashes are equal, the first counts.
    fn of_hashes(hashes: &[(NameHash, u8)]) -> Self {
        let slots = (hashes.len() / 3).saturating_add(1).saturating_mul(4).next_power_of_two();
        let seen = vec![0; 1 << (SEEN_BITS - 6)];
        let mut table = Table { slots: vec![0; slots], count: 0, seen };
        for &(hash, tenths) in hashes {
            if table.tenths(hash) == 0 {
                table.insert(hash, tenths);
            }
        }
        Self(Arc::new(table))
    }

    /// Heat of the symbol with this hash, in tenths; 0 if the list lacks the symbol.
    #[inline]
    fn tenths(&self, hash: NameHash) -> u32 {
        self.0.tenths(hash)
    }
}

impl Table {
    /// Probe sequence of slots for the high half of a hash.
    #[inline]
    fn probes(&self, high: u32) -> impl Iterator<Item = usize> {
        let mask = self.slots.len().wrapping_sub(1);
        (0..self.slots.len()).map(move |step| index(high).wrapping_add(step) & mask)
    }

    /// Location of a hash's bit in `seen`: word index and mask.
    #[inline]
    fn bit(high: u32) -> (usize, u64) {
        let number = index(high >> (u32::BITS - SEEN_BITS));
        (number >> 6, 1 << (number & 63))
    }

    #[inline]
    fn tenths(&self, hash: NameHash) -> u32 {
        let (high, low) = hash.halves();
        let (word, bit) = Self::bit(high);
        if self.seen.get(word).is_none_or(|word| word & bit == 0) {
            return 0;
        }
        for probe in self.probes(high) {
            let slot = self.slots.get(probe).copied().unwrap_or(0);
            if slot == 0 {
                return 0;
            }
            if (slot ^ low) & !HEAT_MASK == 0 {
                return slot & HEAT_MASK;
            }
        }
        0
    }

    fn insert(&mut self, hash: NameHash, tenths: u8) {
        let (high, low) = hash.halves();
        let (word, bit) = Self::bit(high);
        if let Some(word) = self.seen.get_mut(word) {
            *word |= bit;
        }
        let free = self.probes(high).find(|&at| self.slots.get(at) == Some(&0));
        if let Some(slot) = free.and_then(|at| self.slots.get_mut(at)) {
            *slot = (low & !HEAT_MASK) | (u32::from(tenths) & HEAT_MASK);
            self.count = self.count.saturating_add(1);
        }
    }
}

impl fmt::Debug for CommonSymbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommonSymbols").field("count", &self.len()).finish_non_exhaustive()
    }
}

impl From<&SymbolScores> for CommonSymbols {
    fn from(heats: &SymbolScores) -> Self {
        let hashes: Vec<_> = heats.iter().map(|(n, t)| (NameHash::of(n.as_bytes()), t)).collect();
        Self::of_hashes(&hashes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenths(symbols: &CommonSymbols, name: &str) -> u32 {
        symbols.tenths(NameHash::of(name.as_bytes()))
    }

    #[test]
    fn what_is_in_the_list_is_found_and_nothing_else() {
        let heats: SymbolScores = (0..2000_u16)
            .map(|i| (format!("symbol_{i}"), u8::try_from(i % 9 + 1).unwrap()))
            .collect();
        let symbols = CommonSymbols::from(&heats);
        assert_eq!(symbols.len(), 2000);
        for i in 0..2000_u32 {
            assert_eq!(tenths(&symbols, &format!("symbol_{i}")), i % 9 + 1);
            assert_eq!(tenths(&symbols, &format!("symbol_{i}+1")), 0);
        }
        assert_eq!(tenths(&CommonSymbols::none(), "symbol_1"), 0);
        assert!(CommonSymbols::none().is_empty());
    }

    #[test]
    fn the_shipped_list_is_whole() {
        let heats = SymbolScores::parse(SHIPPED).unwrap();
        let symbols = CommonSymbols::default();
        assert_eq!(symbols.len(), heats.len(), "a lost line, or names that collide");
        assert!(heats.iter().all(|(name, heat)| tenths(&symbols, name) == u32::from(heat)));
        for name in ["schedule", "do_syscall_64", "handle_mm_fault", "jiffies"] {
            assert!(tenths(&symbols, name) >= 8, "every workload uses {name}");
        }
        assert!(SHIPPED.len() < 250 << 10, "{} bytes", SHIPPED.len());
        assert_eq!(
            format!("{symbols:?}"),
            format!("CommonSymbols {{ count: {}, .. }}", heats.len())
        );
    }
}
