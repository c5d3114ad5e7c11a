//! `struct page` and the structures that overlay it.

use super::{Schema, constant, embedded, pointer_to};
use crate::MockError;
use crate::linux::KernelStyle;
use crate::linux::types::{
    Composite, I32, Member, Type, U8, U32, U64, member, pointer, void_pointer,
};

/// Bytes of a `struct page`.
const PAGE_BYTES: u32 = 64;

/// A member at an offset in bytes.
fn at(offset: u32, m: Member) -> Member {
    Member { bit_offset: offset * 8, ..m }
}

/// An anonymous structure or union of members that already have offsets.
fn overlay(is_union: bool, size: u32, members: Vec<Member>) -> Member {
    member("", Type::Anonymous(Composite { is_union, members, size, align: 8 }))
}

/// Offsets in bytes of the words of `struct page` that may move.
struct MovableOffsets {
    mapping: u32,
    index: u32,
    private: u32,
    mapcount: u32,
    refcount: u32,
}

impl Schema<'_> {
    pub(super) fn page(&mut self, move_words: bool) -> Result<(), MockError> {
        let style = self.style;
        self.types.enumeration("pageflags", style.page_flags());
        if !style.page_types().is_empty() {
            self.types.enumeration("pagetype", style.page_types());
        }
        let flags = vec![member("f", U64)];
        let flags = Type::Anonymous(self.types.lay_out(false, flags)?);
        self.types.typedef("memdesc_flags_t", flags);
        let mut words = [24, 32, 40];
        let mut halves = [48, 52];
        if move_words {
            self.rng.shuffle(&mut words);
            self.rng.shuffle(&mut halves);
        }
        let [mapping, index, private] = words;
        let [mapcount, refcount] = halves;
        let offsets = MovableOffsets { mapping, index, private, mapcount, refcount };
        let page = self.page_members(&offsets)?;
        self.types.placed(
            "page",
            Composite { is_union: false, members: page, size: PAGE_BYTES, align: 8 },
        );
        if style >= KernelStyle::V6_1 {
            self.slab(&offsets)?;
            self.folio(&offsets)?;
        }
        Ok(())
    }

    /// The type of the flags word.
    fn flags_word(&self) -> Type {
        if self.style >= KernelStyle::V7_2 { Type::Named("memdesc_flags_t") } else { U64 }
    }

    /// The slab allocator's counters, with bit fields.
    fn slab_counters(&self) -> Result<Member, MockError> {
        let bits = |name: &str, width| Member { bits: Some(width), ..member(name, U32) };
        let fields = vec![bits("inuse", 16), bits("objects", 15), bits("snapshot", 1)];
        let fields = self.types.anonymous(false, fields)?;
        self.types.anonymous(true, vec![member("counters", U64), fields])
    }

    fn page_members(&self, offsets: &MovableOffsets) -> Result<Vec<Member>, MockError> {
        let style = self.style;
        // The union of words 1 to 5 starts at byte 8.
        let inside = |offset: u32, m| at(offset - 8, m);
        let lru = if style == KernelStyle::V5_10 {
            embedded("lru", "list_head")
        } else {
            let lists = ["lru", "buddy_list", "pcp_list"].map(|n| embedded(n, "list_head"));
            self.types.anonymous(true, lists.to_vec())?
        };
        let index_name = if style >= KernelStyle::V7_2 { "__folio_index" } else { "index" };
        let index = if style >= KernelStyle::V6_12 {
            self.types.anonymous(true, vec![member(index_name, U64), member("share", U64)])?
        } else {
            member(index_name, U64)
        };
        let cache = overlay(
            false,
            40,
            vec![
                inside(8, lru),
                inside(offsets.mapping, pointer_to("mapping", "address_space")),
                inside(offsets.index, index),
                inside(offsets.private, member("private", U64)),
            ],
        );
        let head_name = if style >= KernelStyle::V7_2 { "compound_info" } else { "compound_head" };
        let mut tail = vec![inside(8, member(head_name, U64))];
        if style <= KernelStyle::V6_1 {
            tail.extend([
                inside(16, member("compound_dtor", U8)),
                inside(17, member("compound_order", U8)),
                inside(20, embedded("compound_mapcount", "atomic_t")),
                inside(24, member("compound_nr", U32)),
            ]);
        }
        let table = overlay(
            false,
            40,
            vec![
                inside(8, member("_pt_pad_1", U64)),
                inside(16, pointer_to("pmd_huge_pte", "page")),
                inside(32, pointer_to("pt_mm", "mm_struct")),
                inside(40, embedded("ptl", "spinlock_t")),
            ],
        );
        let mut uses = vec![
            cache,
            overlay(false, 40, tail),
            table,
            embedded("callback_head", "callback_head"),
        ];
        if style == KernelStyle::V5_10 {
            uses.push(overlay(
                false,
                40,
                vec![
                    inside(8, embedded("slab_list", "list_head")),
                    inside(24, pointer_to("slab_cache", "kmem_cache")),
                    inside(32, member("freelist", void_pointer())),
                    inside(40, self.slab_counters()?),
                ],
            ));
        }
        let counts = vec![embedded("_mapcount", "atomic_t"), member("page_type", U32)];
        let counts = self.types.anonymous(true, counts)?;
        let group = if style == KernelStyle::V5_10 { "mem_cgroup" } else { "memcg_data" };
        let group_type = if style == KernelStyle::V5_10 { pointer("mem_cgroup") } else { U64 };
        Ok(vec![
            at(0, member("flags", self.flags_word())),
            at(8, overlay(true, 40, uses)),
            at(offsets.mapcount, counts),
            at(offsets.refcount, embedded("_refcount", "atomic_t")),
            at(56, member(group, group_type)),
        ])
    }

    fn slab(&mut self, offsets: &MovableOffsets) -> Result<(), MockError> {
        let flags = if self.style >= KernelStyle::V7_2 { "flags" } else { "__page_flags" };
        let (cache, list) = if self.style == KernelStyle::V6_1 { (24, 8) } else { (8, 16) };
        let type_name = if self.style == KernelStyle::V6_1 { "__unused" } else { "__page_type" };
        let members = vec![
            at(0, member(flags, self.flags_word())),
            at(cache, pointer_to("slab_cache", "kmem_cache")),
            at(list, embedded("slab_list", "list_head")),
            at(32, member("freelist", void_pointer())),
            at(40, self.slab_counters()?),
            at(offsets.mapcount, member(type_name, U32)),
            at(offsets.refcount, embedded("__page_refcount", "atomic_t")),
            at(56, member("obj_exts", U64)),
        ];
        self.types
            .placed("slab", Composite { is_union: false, members, size: PAGE_BYTES, align: 8 });
        Ok(())
    }

    fn folio(&mut self, offsets: &MovableOffsets) -> Result<(), MockError> {
        let first = vec![
            at(0, member("flags", self.flags_word())),
            at(8, embedded("lru", "list_head")),
            at(offsets.mapping, pointer_to("mapping", "address_space")),
            at(offsets.index, member("index", U64)),
            at(offsets.private, member("private", constant(void_pointer()))),
            at(offsets.mapcount, embedded("_mapcount", "atomic_t")),
            at(offsets.refcount, embedded("_refcount", "atomic_t")),
            at(56, member("memcg_data", U64)),
        ];
        let first = overlay(
            true,
            PAGE_BYTES,
            vec![overlay(false, PAGE_BYTES, first), embedded("page", "page")],
        );
        let mut second = vec![at(0, member("_flags_1", U64)), at(8, member("_head_1", U64))];
        match self.style {
            KernelStyle::V5_10 => {}
            KernelStyle::V6_1 => second.extend([
                at(16, member("_folio_dtor", U8)),
                at(17, member("_folio_order", U8)),
                at(28, member("_folio_nr_pages", U32)),
            ]),
            KernelStyle::V6_12 => {
                second.extend([
                    at(16, embedded("_large_mapcount", "atomic_t")),
                    at(32, member("_folio_nr_pages", U32)),
                ]);
            }
            KernelStyle::V7_2 => {
                second.extend([
                    at(16, embedded("_large_mapcount", "atomic_t")),
                    at(56, member("_nr_pages", U32)),
                ]);
            }
        }
        let second = overlay(
            true,
            PAGE_BYTES,
            vec![overlay(false, PAGE_BYTES, second), embedded("__page_1", "page")],
        );
        let members =
            vec![at(0, first), at(PAGE_BYTES, second), at(2 * PAGE_BYTES, member("_unused", I32))];
        let size = 3 * PAGE_BYTES;
        self.types.placed("folio", Composite { is_union: false, members, size, align: 8 });
        Ok(())
    }
}
