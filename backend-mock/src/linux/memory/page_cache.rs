//! The page cache: folios, their records, and the xarray that indexes them.

use crate::MockError;
use crate::linux::kernel::{Compound, Kernel, Object, PageRecord};
use crate::linux::truth::{FileKind, Role};
use crate::linux::vfs::File;
use kaleidoscope_core::addr::Gfn;
use std::collections::BTreeMap;

/// Base-2 logarithm of the slots of an xarray node.
const NODE_SHIFT: u32 = 6;

/// An xarray entry: the stored value, and the order of the range of indices that it covers.
#[derive(Clone, Copy, Debug)]
struct Entry {
    value: u64,
    order: u32,
}

impl Kernel {
    /// Adds pages to a file's cache: non-overlapping `(page of the file, order)`. `number` is the
    /// file's position in the truth.
    pub(in crate::linux) fn fill_cache(
        &mut self,
        file: &mut File,
        number: u32,
        folios: &[(u64, u32)],
    ) -> Result<(), MockError> {
        for &(index, order) in folios {
            let role = move |i| Role::Cache { file: number, index: index + i };
            // If memory is fragmented, use a smaller folio.
            let orders = (0..=order).rev().filter(|&o| o != 1 || order == 1);
            let mut taken = Err(MockError::OutOfFrames { order });
            for smaller in orders {
                taken = self.frames.take(smaller, role).map(|head| (head, smaller));
                if !matches!(taken, Err(MockError::OutOfFrames { .. })) {
                    break;
                }
            }
            let (head, order) = taken?;
            let flag = |name| self.style.flag(name);
            let mut flags = flag("PG_uptodate") | flag("PG_lru");
            if file.kind == FileKind::Memory {
                flags |= flag("PG_swapbacked");
            }
            let (is_buffered, is_dirty) = (file.kind == FileKind::Block, self.rng.one_in(16));
            let private = if is_buffered {
                flags |= flag("PG_private");
                let head = self.new_bytes("buffer_head", 104)?;
                self.direct(head)
            } else {
                0
            };
            if is_dirty {
                flags |= self.style.flag("PG_dirty");
            }
            flags |= self.recency(head);
            self.spread_recency(head, order);
            let refcount = (1u32 << order) + u32::from(is_buffered);
            let record = PageRecord {
                flags,
                lru: self.linked(head),
                mapping: file.mapping.gva.0,
                index,
                private,
                refcount,
                ..PageRecord::default()
            };
            self.write_compound(head, order, &record, Compound::Folio)?;
            for i in 0..1u64 << order {
                self.fill_unique(Gfn(head.0 + i))?;
            }
            file.folios.insert(index, (head, order));
        }
        Ok(())
    }

    /// List pointers of a page that is on a list: an arbitrary even address, never followed.
    pub(in crate::linux) fn linked(&self, gfn: Gfn) -> [u64; 2] {
        let place = self.page_address(gfn) + self.page.lru;
        [place, place]
    }

    /// Frames of a large folio share the flags of its head.
    pub(in crate::linux) fn spread_recency(&mut self, head: Gfn, order: u32) {
        for set in [&mut self.active, &mut self.referenced] {
            if set.contains(&head) {
                set.extend((1..1u64 << order).map(|i| Gfn(head.0 + i)));
            }
        }
    }

    /// Writes the file's xarray: its folios, and the `shadows` at indices without a folio.
    pub(in crate::linux) fn index_cache(
        &mut self,
        file: &File,
        shadows: &[u64],
    ) -> Result<(), MockError> {
        let mut entries: BTreeMap<u64, Entry> = BTreeMap::new();
        for (&index, &(head, order)) in &file.folios {
            entries.insert(index, Entry { value: self.page_address(head), order });
        }
        let end = |(&index, e): (&u64, &Entry)| index + (1u64 << e.order);
        for &index in shadows {
            let before = entries.range(..=index).next_back();
            if before.is_none_or(|e| end(e) <= index) {
                // A value entry, as the kernel leaves for evicted pages.
                let value = self.rng.below(1 << 40) << 1 | 1;
                entries.insert(index, Entry { value, order: 0 });
            }
        }
        let pages: u64 = file.folios.values().map(|f| 1u64 << f.1).sum();
        self.set(file.mapping, "nrpages", pages)?;
        let Some(last) = entries.iter().map(end).max() else {
            return Ok(());
        };
        let only = entries.get(&0).filter(|e| last == 1 && e.order == 0);
        let head = match only {
            Some(entry) => entry.value,
            None => {
                let largest = entries.values().map(|e| e.order).max().unwrap_or(0);
                let mut shift = 0;
                while last > 1u64 << (shift + NODE_SHIFT) || largest >= shift + NODE_SHIFT {
                    shift += NODE_SHIFT;
                }
                self.xa_node(file.mapping, &entries, 0, shift, (0, 0))? | 2
            }
        };
        self.set(file.mapping, "i_pages.xa_head", head)
    }

    /// Writes the node whose slots cover `1 << shift` indices each, starting at `base`, and the
    /// nodes below it. Returns its address.
    fn xa_node(
        &mut self,
        mapping: Object,
        entries: &BTreeMap<u64, Entry>,
        base: u64,
        shift: u32,
        (parent, slot_in_parent): (u64, u64),
    ) -> Result<u64, MockError> {
        let node = self.new_object("radix_tree_node", "xa_node")?;
        let address = node.gva.0;
        let slots = self.address(node, "slots")?;
        self.set(node, "shift", shift.into())?;
        self.set(node, "offset", slot_in_parent)?;
        self.set(node, "parent", parent)?;
        let array = self.address(mapping, "i_pages")?;
        self.set(node, "array", array)?;
        let (mut used, mut values) = (0u64, 0u64);
        let mut slot = 0;
        while slot < 1 << NODE_SHIFT {
            let first = base + (slot << shift);
            let mut inside = entries.range(first..first + (1 << shift));
            let Some((&index, &entry)) = inside.next() else {
                slot += 1;
                continue;
            };
            if index == first && entry.order >= shift {
                // The entry, and siblings over the rest of its span.
                self.store(slots + 8 * slot, entry.value)?;
                let span = 1u64 << (entry.order - shift);
                for sibling in 1..span {
                    self.store(slots + 8 * (slot + sibling), slot << 2 | 2)?;
                }
                used += span;
                values += entry.value & 1;
                slot += span;
            } else {
                let below =
                    self.xa_node(mapping, entries, first, shift - NODE_SHIFT, (address, slot))?;
                self.store(slots + 8 * slot, below | 2)?;
                used += 1;
                slot += 1;
            }
        }
        self.set(node, "count", used)?;
        self.set(node, "nr_values", values)?;
        Ok(address)
    }
}
