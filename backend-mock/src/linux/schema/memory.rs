//! The page allocator's and the slab allocator's structures.

use super::{Schema, embedded, pointer_to, text};
use crate::MockError;
use crate::linux::KernelStyle;
use crate::linux::types::{I32, Type, U8, U16, U32, U64, array, member};

/// Number of block orders of the buddy allocator (`MAX_PAGE_ORDER + 1`).
pub(in crate::linux) const BUDDY_ORDERS: u32 = 11;

/// Number of zones of a node (DMA, DMA32, Normal, Movable, Device).
pub(in crate::linux) const ZONES: u32 = 5;

impl Schema<'_> {
    pub(super) fn memory(&mut self) -> Result<(), MockError> {
        let style = self.style;
        let lists = |count| array(Type::Named("list_head"), count);
        self.shuffled("mem_section_usage", vec![member("subsection_map", array(U64, 1))])?;
        self.fixed(
            "mem_section",
            vec![member("section_mem_map", U64), pointer_to("usage", "mem_section_usage")],
        )?;
        self.shuffled(
            "free_area",
            vec![member("free_list", lists(style.migrate_types())), member("nr_free", U64)],
        )?;
        let mut per_cpu = vec![member("count", I32), member("high", I32), member("batch", I32)];
        if style >= KernelStyle::V6_1 {
            per_cpu.push(embedded("lock", "spinlock_t"));
        }
        if style >= KernelStyle::V6_12 {
            per_cpu.extend([member("flags", U8), member("free_count", U16)]);
        }
        per_cpu.push(member("lists", lists(style.per_cpu_lists())));
        self.shuffled("per_cpu_pages", per_cpu)?;
        if style == KernelStyle::V5_10 {
            self.shuffled(
                "per_cpu_pageset",
                vec![embedded("pcp", "per_cpu_pages"), member("stat_threshold", U8)],
            )?;
        }
        let pageset = match style {
            KernelStyle::V5_10 => pointer_to("pageset", "per_cpu_pageset"),
            KernelStyle::V6_1 | KernelStyle::V6_12 | KernelStyle::V7_2 => {
                pointer_to("per_cpu_pageset", "per_cpu_pages")
            }
        };
        self.shuffled(
            "zone",
            vec![
                member("_watermark", array(U64, 4)),
                member("lowmem_reserve", array(U64, ZONES)),
                member("node", I32),
                pointer_to("zone_pgdat", "pglist_data"),
                pageset,
                member("zone_start_pfn", U64),
                embedded("managed_pages", "atomic_long_t"),
                member("spanned_pages", U64),
                member("present_pages", U64),
                text("name"),
                member("initialized", I32),
                member("free_area", array(Type::Named("free_area"), BUDDY_ORDERS)),
                member("flags", U64),
                embedded("lock", "spinlock_t"),
                member("vm_stat", array(Type::Named("atomic_long_t"), 11)),
            ],
        )?;
        self.shuffled(
            "pglist_data",
            vec![
                member("node_zones", array(Type::Named("zone"), ZONES)),
                member("nr_zones", I32),
                member("node_start_pfn", U64),
                member("node_present_pages", U64),
                member("node_spanned_pages", U64),
                member("node_id", I32),
                pointer_to("kswapd", "task_struct"),
            ],
        )?;
        self.types.typedef("pg_data_t", Type::Named("pglist_data"));
        self.shuffled(
            "kmem_cache",
            vec![
                pointer_to("cpu_slab", "kmem_cache_cpu"),
                member("flags", U32),
                member("size", U32),
                member("object_size", U32),
                member("offset", U32),
                member("refcount", I32),
                member("inuse", U32),
                member("align", U32),
                text("name"),
                embedded("list", "list_head"),
                member("random", U64),
            ],
        )
    }
}
