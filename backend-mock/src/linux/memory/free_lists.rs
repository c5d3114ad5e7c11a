//! The order in which a synthetic guest's kernel would allocate its free frames, found by walking
//! its lists like the kernel: from the heads in its zones and per-CPU areas.

use crate::linux::guest::MockGuest;
use crate::linux::schema::{BUDDY_ORDERS, ZONES};
use crate::linux::style::KernelStyle;
use crate::ram::read_u64;
use kaleidoscope_core::addr::{Gfn, Gva};

/// Maximum length of a list; a longer one is a cycle.
const MAX_BLOCKS: usize = 1 << 20;

impl MockGuest {
    /// Frames in the order in which the kernel would allocate them: one list per CPU list, and one
    /// per zone and migration type with the smallest blocks first. Empty lists are omitted. `None`
    /// if a list leads out of memory or does not end.
    #[must_use]
    pub fn free_lists(&self) -> Option<Vec<Vec<Gfn>>> {
        let style = self.truth.kernel.style;
        let mut found = Vec::new();
        for zone in self.zone_addresses()? {
            for cpu in 0..self.registers.len() as u64 {
                let lists = self.per_cpu_lists(zone, cpu)?;
                for list in 0..style.per_cpu_lists() {
                    found.push(self.blocks(lists + 16 * u64::from(list), list / 3)?);
                }
            }
            let areas = zone + self.offset("zone", "free_area")?;
            let area_bytes = self.types.size_of("free_area").ok()?;
            let lists = areas + self.offset("free_area", "free_list")?;
            for list in 0..style.migrate_types() {
                let mut frames = Vec::new();
                for order in 0..BUDDY_ORDERS {
                    let head = lists + u64::from(order) * area_bytes + 16 * u64::from(list);
                    frames.extend(self.blocks(head, order)?);
                }
                found.push(frames);
            }
        }
        found.retain(|frames| !frames.is_empty());
        Some(found)
    }

    fn zone_addresses(&self) -> Option<Vec<u64>> {
        let node = match self.symbol("node_data") {
            Some(array) => self.word(array.0)?,
            None => self.symbol("contig_page_data")?.0,
        };
        let first = node + self.offset("pglist_data", "node_zones")?;
        let bytes = self.types.size_of("zone").ok()?;
        Some((0..u64::from(ZONES)).map(|number| first + number * bytes).collect())
    }

    /// Address of a CPU's lists for a zone.
    fn per_cpu_lists(&self, zone: u64, cpu: u64) -> Option<u64> {
        let (member, lists) = match self.truth.kernel.style {
            KernelStyle::V5_10 => ("pageset", self.offset("per_cpu_pageset", "pcp.lists")?),
            KernelStyle::V6_1 | KernelStyle::V6_12 | KernelStyle::V7_2 => {
                ("per_cpu_pageset", self.offset("per_cpu_pages", "lists")?)
            }
        };
        let area = self.word(self.symbol("__per_cpu_offset")?.0 + 8 * cpu)?;
        Some(self.word(zone + self.offset("zone", member)?)?.wrapping_add(area) + lists)
    }

    /// Frames of all blocks on a list.
    fn blocks(&self, head: u64, order: u32) -> Option<Vec<Gfn>> {
        let records = self.truth.kernel.vmemmap.0 + self.offset("page", "lru")?;
        let record_bytes = self.types.size_of("page").ok()?;
        let mut frames = Vec::new();
        let mut node = self.word(head)?;
        for _ in 0..MAX_BLOCKS {
            if node == head {
                return Some(frames);
            }
            let first = node.checked_sub(records)? / record_bytes;
            frames.extend((first..first + (1 << order)).map(Gfn));
            node = self.word(node)?;
        }
        None
    }

    fn word(&self, gva: u64) -> Option<u64> {
        read_u64(&self.memory, self.physical(Gva(gva))?).ok()
    }
}
