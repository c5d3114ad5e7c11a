//! Which kernel functions and variables every workload uses, and so which pages of a kernel image.
//!
//! Whatever a guest does, its kernel schedules, enters and leaves system calls, and handles faults.
//! Where that code and data lie differs between kernels, but the names stay. The list says for each
//! symbol how often a clone touched the page that holds it; it was learned from traces of real
//! clones ([`learn`]) and is compiled in. On a kernel that it has never seen, a page's score is the
//! mean heat of all symbols in it, of which those that are not in the list count 0.
//!
//! How much that is worth: learned from three of the Debian kernels 5.10, 6.1, 6.12 and 7.2 and
//! judged on the clones of the fourth, of the kernel text that is
//! [common](crate::color::Temperature::COMMON) a trace touched 84 to 91 % (of kernel data 68 to 88
//! %). What is [frequent](crate::color::Temperature::FREQUENT) had 87 to 94 % of the touches of
//! kernel text, and 86 to 95 % of those of data. Read-only data is judged less well: at most
//! frequent, touched half the time.
//!
//! ```text
//!  traces, symbols ─ learn ─► SymbolScores ─ list ─► common_symbols.txt ─► CommonSymbols ─ score ─► signs of pages
//! ```

mod by_page;
mod learn;
mod list;
mod score;

pub use by_page::SymbolsByPage;
pub use learn::{Lesson, Pruning, learn};
pub use list::{CommonSymbolsError, SymbolScores};
pub(super) use score::signs_of_pages;

use super::bytes::index;
use super::kallsyms::NameHash;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// The list that comes with the library.
const SHIPPED: &str = include_str!("../common_symbols.txt");

/// Hash bits that choose the bit in [`Table::seen`].
const SEEN_BITS: u32 = 18;

/// The bits of a slot that hold the heat.
const HEAT: u32 = 0xf;

/// A list of symbols with their heat, ready to be looked up. Clones share it.
#[derive(Clone)]
pub struct CommonSymbols(Arc<Table>);

/// An open hash table.
struct Table {
    /// A power of two of them, at least a quarter of them 0. Others: the low half of a name's
    /// hash, with the heat in tenths in the lowest bits. The high half chooses the slot.
    /// Small, because nothing of it is in a cache when coloring begins.
    slots: Vec<u32>,
    count: usize,
    /// A bit for each value of the hashes' high bits, set where there is a symbol: most names of a
    /// kernel are in no list, and this tells so from 32 KiB, which stay in the nearest cache.
    seen: Vec<u64>,
}

impl Default for CommonSymbols {
    /// The list that comes with the library.
    fn default() -> Self {
        static DEFAULT: OnceLock<CommonSymbols> = OnceLock::new();
        // A test reads the list; should it be broken all the same, nothing is known.
        DEFAULT.get_or_init(|| Self::parse(SHIPPED).unwrap_or_else(|_| Self::none())).clone()
    }
}

impl CommonSymbols {
    /// An empty list: no frame will be said to hold common symbols, and looking costs nothing.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(Table { slots: Vec::new(), count: 0, seen: Vec::new() }))
    }

    /// Reads a list in the form of [`SymbolScores::to_text`].
    ///
    /// # Errors
    /// [`CommonSymbolsError`] names the line.
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

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.count == 0
    }

    /// Of equal hashes the first counts.
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

    /// AccessClass of the symbol with this hash, in tenths; 0 when it is not in the list.
    #[inline]
    fn tenths(&self, hash: NameHash) -> u32 {
        self.0.tenths(hash)
    }
}

impl Table {
    /// Places to look at for the high half of a hash, best first.
    #[inline]
    fn places(&self, high: u32) -> impl Iterator<Item = usize> {
        let mask = self.slots.len().wrapping_sub(1);
        (0..self.slots.len()).map(move |step| index(high).wrapping_add(step) & mask)
    }

    /// Where the bit of a hash is: the word, and the bit in it.
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
        for place in self.places(high) {
            let slot = self.slots.get(place).copied().unwrap_or(0);
            if slot == 0 {
                return 0;
            }
            if (slot ^ low) & !HEAT == 0 {
                return slot & HEAT;
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
        let place = self.places(high).find(|&place| self.slots.get(place) == Some(&0));
        if let Some(slot) = place.and_then(|place| self.slots.get_mut(place)) {
            *slot = (low & !HEAT) | (u32::from(tenths) & HEAT);
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
            assert!(tenths(&symbols, name) >= 8, "{name} is used by everybody");
        }
        assert!(SHIPPED.len() < 250 << 10, "{} bytes", SHIPPED.len());
        assert_eq!(
            format!("{symbols:?}"),
            format!("CommonSymbols {{ count: {}, .. }}", heats.len())
        );
    }
}
