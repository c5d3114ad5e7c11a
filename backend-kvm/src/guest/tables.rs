//! Page tables of a process.

use kaleidoscope_core::addr::Gpa;
use std::collections::BTreeMap;

/// Bits of a page table entry (Intel SDM vol. 3, 4.5).
pub(super) const PRESENT: u64 = 1;
pub(super) const WRITE: u64 = 2;
pub(super) const USER: u64 = 4;
pub(super) const NO_EXECUTE: u64 = 1 << 63;

/// Page tables under construction, by guest-physical address.
pub(super) struct Tables {
    root: u64,
    next: u64,
    end: u64,
    tables: BTreeMap<u64, Box<[u64; 512]>>,
}

impl Tables {
    /// Empty tables, allocated from the guest-physical range `room`.
    pub(super) fn new(room: std::ops::Range<u64>) -> Option<Self> {
        let mut tables = Self { root: 0, next: room.start, end: room.end, tables: BTreeMap::new() };
        tables.root = tables.table()?;
        Some(tables)
    }

    fn table(&mut self) -> Option<u64> {
        let at = self.next;
        self.next += 0x1000;
        self.tables.insert(at, Box::new([0; 512]));
        (self.next <= self.end).then_some(at)
    }

    /// Guest-physical address of the PML4 table.
    pub(super) fn root(&self) -> u64 {
        self.root
    }

    /// One past the last allocated table.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Maps a 4 KiB page; `None` when `room` is exhausted.
    pub(super) fn map(&mut self, address: u64, gpa: u64, rights: u64) -> Option<()> {
        let mut table = self.root;
        for level in (1..4).rev() {
            let index = usize::try_from(address >> (12 + 9 * level) & 511).ok()?;
            let entry = *self.tables.get(&table)?.get(index)?;
            table = if entry == 0 {
                let next = self.table()?;
                *self.tables.get_mut(&table)?.get_mut(index)? = next | PRESENT | WRITE | USER;
                next
            } else {
                entry & !0xfff
            };
        }
        let index = usize::try_from(address >> 12 & 511).ok()?;
        *self.tables.get_mut(&table)?.get_mut(index)? = gpa | rights | PRESENT;
        Some(())
    }

    /// The tables as bytes, each with its guest-physical address.
    pub(super) fn pages(&self) -> impl Iterator<Item = (Gpa, Vec<u8>)> + '_ {
        self.tables.iter().map(|(at, entries)| {
            (Gpa(*at), entries.iter().flat_map(|entry| entry.to_le_bytes()).collect())
        })
    }
}
