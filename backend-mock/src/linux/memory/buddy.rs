//! The page allocator's structures: zones, free blocks and their lists, per-CPU lists of free
//! pages.

use crate::MockError;
use crate::linux::KernelStyle;
use crate::linux::boot::PerCpu;
use crate::linux::builder::Knobs;
use crate::linux::image::Section;
use crate::linux::kernel::{Kernel, Object, PageRecord, SECTION_FRAMES};
use crate::linux::schema::{BUDDY_ORDERS, ZONES};
use crate::linux::style::{NO_MAPPINGS, PageType};
use crate::linux::truth::Role;
use kaleidoscope_core::addr::{Gfn, Gva};
use std::collections::BTreeMap;

/// First frames of the zones DMA, DMA32 and Normal, and one past the last.
const ZONE_STARTS: [u64; 4] = [1, 0x1000, 0x10_0000, 1 << 40];

const ZONE_NAMES: [&str; 5] = ["DMA", "DMA32", "Normal", "Movable", "Device"];

/// Entries of the array of nodes (`MAX_NUMNODES`).
pub(in crate::linux) const MAX_NODES: u64 = 1024;

/// A zone under construction.
struct Zone {
    object: Object,
    frames: std::ops::Range<u64>,
}

/// The node and its zones.
pub(in crate::linux) struct Zones {
    node: Object,
    zones: Vec<Zone>,
}

impl Kernel {
    /// Reserves space for the node: in the image, or in memory of its own if there may be several
    /// nodes.
    pub(in crate::linux) fn place_node(&mut self, knobs: &Knobs) -> Result<Object, MockError> {
        if knobs.numa {
            let node = self.boot_object("pglist_data")?;
            let array = self.image.place(Section::Bss, "node_data", MAX_NODES * 8, 8)?;
            self.store(array.0, node.gva.0)?;
            Ok(node)
        } else {
            let bytes = self.types.size_of("pglist_data")?;
            let gva = self.image.place(Section::Bss, "contig_page_data", bytes, 64)?;
            self.object(gva, "pglist_data")
        }
    }

    /// Writes the node and its zones, with every list empty.
    pub(in crate::linux) fn zones(
        &mut self,
        node: Object,
        per_cpu: &mut PerCpu,
    ) -> Result<Zones, MockError> {
        let end = self.frames.layout().end_gfn().0;
        self.set(node, "nr_zones", if end > ZONE_STARTS[2] { 3 } else { 2 })?;
        self.set(node, "node_start_pfn", 1)?;
        self.set(node, "node_spanned_pages", end - 1)?;
        let first = self.part(node, "node_zones", "zone")?;
        let size = self.types.size_of("zone")?;
        let mut zones = Vec::new();
        for number in 0..u64::from(ZONES) {
            let gva = Gva(first.gva.0 + number * size);
            let object = self.object(gva, "zone")?;
            let at = usize::try_from(number).unwrap_or(0);
            let bound = |i: usize| ZONE_STARTS.get(i).copied().unwrap_or(1 << 40).min(end);
            let frames = bound(at)..bound(at + 1);
            let name = ZONE_NAMES.get(at).copied().unwrap_or_default();
            let text = self.image.place(Section::Rodata, "", name.len() as u64 + 1, 1)?;
            self.store_bytes(text.0, name.as_bytes())?;
            self.set(object, "name", text.0)?;
            self.set(object, "zone_pgdat", node.gva.0)?;
            if frames.start < frames.end {
                self.set(object, "zone_start_pfn", frames.start)?;
                self.set(object, "spanned_pages", frames.end - frames.start)?;
            }
            for order in 0..BUDDY_ORDERS {
                for list in 0..self.style.migrate_types() {
                    let head = self.free_list(object, order, list)?;
                    self.list_init(head)?;
                }
            }
            self.per_cpu_lists(object, per_cpu)?;
            zones.push(Zone { object, frames });
        }
        Ok(Zones { node, zones })
    }

    /// The head of a zone's list of free blocks.
    fn free_list(&self, zone: Object, order: u32, list: u32) -> Result<u64, MockError> {
        let area = u64::from(order) * self.types.size_of("free_area")?;
        let lists = self.types.offset("free_area", "free_list")?;
        Ok(self.address(zone, "free_area")? + area + lists + 16 * u64::from(list))
    }

    /// Creates the zone's per-CPU lists, in every CPU's area.
    fn per_cpu_lists(&mut self, zone: Object, per_cpu: &mut PerCpu) -> Result<(), MockError> {
        let (member, ty, lists) = self.pageset();
        let pointer = per_cpu.allocate(self.types.size_of(ty)?)?;
        self.set(zone, member, pointer)?;
        let lists = self.types.offset(ty, lists)?;
        for offset in per_cpu.offsets.clone() {
            let area = pointer.wrapping_add(offset);
            for list in 0..u64::from(self.style.per_cpu_lists()) {
                self.list_init(area + lists + 16 * list)?;
            }
        }
        Ok(())
    }

    fn pageset(&self) -> (&'static str, &'static str, &'static str) {
        match self.style {
            KernelStyle::V5_10 => ("pageset", "per_cpu_pageset", "pcp.lists"),
            KernelStyle::V6_1 | KernelStyle::V6_12 | KernelStyle::V7_2 => {
                ("per_cpu_pageset", "per_cpu_pages", "lists")
            }
        }
    }

    /// Distributes unclaimed frames: a few pages to per-CPU lists, the rest to free blocks as large
    /// as possible. Returns the blocks. Afterwards every frame has a role and a record.
    pub(in crate::linux) fn give_back(
        &mut self,
        zones: &Zones,
        per_cpu: &PerCpu,
    ) -> Result<BTreeMap<Gfn, u32>, MockError> {
        let Zones { node, zones } = zones;
        self.per_cpu_free(zones, per_cpu)?;
        let mut blocks = BTreeMap::new();
        let mut present = 0;
        for zone in zones {
            let mut counts = BTreeMap::<u32, u64>::new();
            for region in self.frames.layout().regions().to_vec() {
                let mut gfn = region.start.0.max(zone.frames.start);
                let end = (region.start.0 + u64::from(region.frames)).min(zone.frames.end);
                present += end.saturating_sub(gfn);
                while gfn < end {
                    let order = self.largest_block(gfn, end);
                    if let Some(order) = order {
                        self.free_block(zone.object, Gfn(gfn), order)?;
                        blocks.insert(Gfn(gfn), order);
                        *counts.entry(order).or_default() += 1;
                    }
                    gfn += order.map_or(1, |o| 1 << o);
                }
            }
            let size = self.types.size_of("free_area")?;
            let area = self.part(zone.object, "free_area", "free_area")?;
            for (order, count) in counts {
                let distance = u64::from(order) * size;
                let area = self.object(Gva(area.gva.0 + distance), "free_area")?;
                self.set(area, "nr_free", count)?;
            }
        }
        self.set(*node, "node_present_pages", present)?;
        self.reserved_records()?;
        Ok(blocks)
    }

    /// Order of the largest aligned block of unclaimed frames at `gfn`.
    fn largest_block(&self, gfn: u64, end: u64) -> Option<u32> {
        let fits = |order: u32| {
            let frames = 1u64 << order;
            gfn.is_multiple_of(frames)
                && gfn + frames <= end
                && (gfn..gfn + frames).all(|g| self.frames.is_left(Gfn(g)))
        };
        // A block of one order is free only if its first half is.
        (0..BUDDY_ORDERS).take_while(|&order| fits(order)).last()
    }

    fn free_block(&mut self, zone: Object, gfn: Gfn, order: u32) -> Result<(), MockError> {
        for i in 0..1u64 << order {
            self.frames.claim(Gfn(gfn.0 + i), Role::Free { order })?;
            if i > 0 {
                self.write_page(Gfn(gfn.0 + i), &PageRecord::default())?;
            }
        }
        let word = self.style.page_type_word(PageType::Buddy).unwrap_or(NO_MAPPINGS);
        self.write_page(gfn, &PageRecord { word, private: order.into(), ..PageRecord::default() })?;
        let list = u32::try_from(self.rng.below(3)).unwrap_or(0);
        let head = self.free_list(zone, order, list)?;
        let node = self.page_address(gfn) + self.page.lru;
        self.list_append(head, node)
    }

    /// Puts a few single pages, and on newer kernels some larger blocks, on each CPU's lists.
    fn per_cpu_free(&mut self, zones: &[Zone], per_cpu: &PerCpu) -> Result<(), MockError> {
        let (member, ty, lists) = self.pageset();
        let (offset, count_path) = (
            self.types.offset(ty, lists)?,
            if ty == "per_cpu_pageset" { "pcp.count" } else { "count" },
        );
        for (cpu, area) in (0u32..).zip(per_cpu.offsets.clone()) {
            let wanted = (self.frames.left() / 40).clamp(1, 60);
            let mut counts = BTreeMap::<usize, u64>::new();
            for _ in 0..wanted {
                let order =
                    if self.style >= KernelStyle::V6_1 && self.rng.one_in(8) { 1 } else { 0 };
                let gfn = match self.frames.take(order, |_| Role::PerCpuFree { cpu }) {
                    Ok(gfn) => gfn,
                    Err(MockError::OutOfFrames { .. }) => break,
                    Err(other) => return Err(other),
                };
                let Some(number) = zones.iter().position(|z| z.frames.contains(&gfn.0)) else {
                    continue;
                };
                let Some(zone) = zones.get(number) else { continue };
                // Lists are ordered by order, then by migration type, which the page's record
                // stores.
                let movable = self.rng.below(3);
                for i in 0..1u64 << order {
                    let private = if i == 0 { movable } else { 0 };
                    self.write_page(
                        Gfn(gfn.0 + i),
                        &PageRecord { private, ..PageRecord::default() },
                    )?;
                }
                let pointer = self.load(self.address(zone.object, member)?)?;
                let head =
                    pointer.wrapping_add(area) + offset + 16 * (u64::from(order) * 3 + movable);
                let node = self.page_address(gfn) + self.page.lru;
                self.list_append(head, node)?;
                *counts.entry(number).or_default() += 1 << order;
            }
            for (number, count) in counts {
                let Some(zone) = zones.get(number) else { continue };
                let pointer = self.load(self.address(zone.object, member)?)?;
                let pages = self.object(Gva(pointer.wrapping_add(area)), ty)?;
                self.set(pages, count_path, count)?;
            }
        }
        Ok(())
    }

    /// Writes the records of frames that the allocator never owned, and of holes inside memory
    /// sections.
    fn reserved_records(&mut self) -> Result<(), MockError> {
        let flags = self.style.flag("PG_reserved");
        let sections: Vec<u64> = self.memmap.keys().copied().collect();
        for section in sections {
            for gfn in (section * SECTION_FRAMES..(section + 1) * SECTION_FRAMES).map(Gfn) {
                let is_ram = self.frames.layout().index_of(gfn).is_some();
                if !is_ram || self.frames.role(gfn).is_some_and(Role::is_reserved) {
                    let place = self.page_address(gfn) + self.page.lru;
                    let record = PageRecord {
                        flags,
                        lru: [place, place],
                        refcount: 1,
                        ..PageRecord::default()
                    };
                    self.write_page(gfn, &record)?;
                }
            }
        }
        Ok(())
    }
}
