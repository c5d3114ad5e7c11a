//! Layout of this kernel's structures.
//!
//! Offsets come from the kernel's own type information (BTF) and, for the fields that crash-dump
//! tools need, from VMCOREINFO. Nothing is derived from the version number. A field that neither
//! source describes is `None`, and whatever depends on it is left out.

use super::btf::TypeIndex;
use super::frames::page_types::{PageFlags, PageTypes, TypeScheme};
use super::vmcoreinfo::VmcoreInfo;

macro_rules! fields {
    ($($(#[$doc:meta])* $field:ident: $($path:literal)|+),+ $(,)?) => {
        /// Byte offsets of structure members; `None` where unknown.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub(crate) struct Fields {
            $($(#[$doc])* pub(crate) $field: Option<u64>),+
        }

        impl Fields {
            fn collect(types: Option<&TypeIndex<'_>>, note: Option<&VmcoreInfo>) -> Self {
                let offset = |paths: &[&str]| {
                    let typed = |path: &&str| {
                        types?.member(path).filter(|m| m.bit_offset % 8 == 0).map(|m| m.byte_offset)
                    };
                    let noted = |path: &&str| note?.offset(path);
                    paths.iter().find_map(typed).or_else(|| paths.iter().find_map(noted))
                };
                Self { $($field: offset(&[$($path),+])),+ }
            }
        }
    };
}

fields! {
    page_flags: "page.flags",
    page_refcount: "page._refcount",
    /// The number of mappings, or the page's type.
    page_mapcount: "page._mapcount" | "page.page_type",
    page_mapping: "page.mapping",
    page_index: "page.index" | "page.__folio_index",
    /// The order of a buddy block.
    page_private: "page.private",
    page_lru: "page.lru",
    /// In a tail of a compound page: the location of its head.
    page_compound: "page.compound_head" | "page.compound_info",
    /// In the first tail (until 6.5): the type of the compound page.
    page_compound_dtor: "page.compound_dtor",
    slab_cache: "slab.slab_cache" | "page.slab_cache",
    cache_name: "kmem_cache.name",
    mapping_host: "address_space.host",
    inode_mapping: "inode.i_mapping",
    inode_number: "inode.i_ino",
    inode_super: "inode.i_sb",
    inode_aliases: "inode.i_dentry",
    /// The device number that a device inode stands for.
    inode_rdev: "inode.i_rdev",
    dentry_alias: "dentry.d_u.d_alias" | "dentry.d_alias",
    dentry_hash: "dentry.d_hash",
    dentry_parent: "dentry.d_parent",
    dentry_name: "dentry.d_name" | "dentry.__d_name",
    name_text: "qstr.name",
    name_length: "qstr.len",
    super_type: "super_block.s_type",
    super_device: "super_block.s_dev",
    super_root: "super_block.s_root",
    super_mounts: "super_block.s_mounts",
    type_name: "file_system_type.name",
    /// Since 6.17, plain pointers link the mounts of a super block.
    mount_next: "mount.mnt_next_for_sb",
    /// Until 6.16, a list links them.
    mount_instance: "mount.mnt_instance",
    mount_point: "mount.mnt_mountpoint",
    mount_parent: "mount.mnt_parent",
    mount_root: "mount.mnt.mnt_root",
    task_tasks: "task_struct.tasks",
    task_pid: "task_struct.pid",
    task_comm: "task_struct.comm",
    task_mm: "task_struct.mm",
    task_stack: "task_struct.stack",
    task_signal: "task_struct.signal",
    task_thread_node: "task_struct.thread_node",
    task_last_run: "task_struct.sched_info.last_arrival" | "task_struct.se.exec_start",
    signal_threads: "signal_struct.thread_head",
    mm_root: "mm_struct.pgd",
    resource_start: "resource.start",
    resource_end: "resource.end",
    resource_name: "resource.name",
    resource_flags: "resource.flags",
    resource_sibling: "resource.sibling",
    resource_child: "resource.child",
}

/// Names of the types above, for a single pass over the type information.
const TYPE_NAMES: &[&str] = &[
    "page",
    "slab",
    "kmem_cache",
    "address_space",
    "inode",
    "dentry",
    "qstr",
    "super_block",
    "file_system_type",
    "mount",
    "task_struct",
    "signal_struct",
    "mm_struct",
    "pageflags",
    "pagetype",
    "free_area",
    "system_states",
    "resource",
];

/// Layout and constants of this kernel's structures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Profile {
    pub(crate) fields: Fields,
    pub(crate) flags: PageFlags,
    pub(crate) types: Option<PageTypes>,
    /// Bytes of a `struct page`.
    pub(crate) page_bytes: u64,
    /// Value of the first tail's destructor byte that marks hugetlb pages (until 6.5).
    pub(crate) hugetlb_dtor: Option<u8>,
    /// Mask of the flag in the first tail that marks hugetlb pages (6.6 to 6.8).
    pub(crate) hugetlb_tail_flag: u64,
    /// Number of block orders in the buddy allocator.
    pub(crate) buddy_orders: u32,
    /// Bytes of a `struct free_area`; a zone has one for each order.
    pub(crate) free_area_bytes: Option<u64>,
    /// Bytes of a task's command name.
    pub(crate) comm_bytes: usize,
    /// Values of `enum system_states` for a kernel that no longer runs: halted, powered off,
    /// restarting.
    pub(crate) shut_down: [Option<u32>; 3],
}

/// Bytes of a `struct page` if no source reports it; the size on every 64-bit kernel so far.
const PAGE_BYTES: u64 = 64;

/// `MAX_PAGE_ORDER + 1` on x86-64.
const BUDDY_ORDERS: u32 = 11;

impl Profile {
    /// Whether the profile suffices to identify files.
    pub(crate) fn has_files(&self) -> bool {
        let f = &self.fields;
        f.mapping_host.is_some() && f.inode_mapping.is_some() && f.inode_super.is_some()
    }

    /// Whether a value of `enum system_states` means that the kernel was shut down.
    pub(crate) fn is_shut_down(&self, state: u32) -> bool {
        self.shut_down.contains(&Some(state))
    }

    /// Names of the types that [`collect`](Self::collect) reads.
    pub(crate) fn type_names() -> &'static [&'static str] {
        TYPE_NAMES
    }

    pub(crate) fn collect(types: Option<&TypeIndex<'_>>, note: Option<&VmcoreInfo>) -> Self {
        let mut fields = Fields::collect(types, note);
        // VMCOREINFO lacks the offset of the index; it has followed the mapping in every layout so
        // far.
        fields.page_index =
            fields.page_index.or(fields.page_mapping.and_then(|m| m.checked_add(8)));
        // The LRU list and a tail's head pointer share the second word in every layout so far.
        fields.page_compound = fields.page_compound.or(fields.page_lru);
        let from_note = || note.and_then(|n| n.size("page"));
        let dtor = note.and_then(|n| n.number("HUGETLB_PAGE_DTOR")).unwrap_or(2);
        let dtor = u8::try_from(dtor).ok().filter(|_| fields.page_compound_dtor.is_some());
        let orders = note.and_then(|n| n.length("zone.free_area")).unwrap_or(BUDDY_ORDERS.into());
        let size_of = |name: &str| types.and_then(|t| t.struct_named(name)).map(|s| s.size());
        let free_area = size_of("free_area").or_else(|| note.and_then(|n| n.size("free_area")));
        let state = |name: &str| {
            types.and_then(|t| t.enum_value("system_states", name)).and_then(|v| v.try_into().ok())
        };
        let comm = types.and_then(|t| t.btf().type_size(t.member("task_struct.comm")?.type_id));
        Self {
            fields,
            flags: page_flags(types, note),
            types: page_types(types, note),
            page_bytes: size_of("page").or_else(from_note).unwrap_or(PAGE_BYTES),
            hugetlb_dtor: dtor,
            hugetlb_tail_flag: flag_mask(types, note, "PG_hugetlb"),
            buddy_orders: u32::try_from(orders).unwrap_or(BUDDY_ORDERS).clamp(1, 32),
            free_area_bytes: free_area,
            shut_down: ["SYSTEM_HALT", "SYSTEM_POWER_OFF", "SYSTEM_RESTART"].map(state),
            comm_bytes: comm.and_then(|c| usize::try_from(c).ok()).unwrap_or(16).min(64),
        }
    }
}

fn mask(bit: i64) -> u64 {
    u32::try_from(bit).ok().and_then(|b| 1u64.checked_shl(b)).unwrap_or(0)
}

fn number_mask(note: Option<&VmcoreInfo>, name: &str) -> u64 {
    note.and_then(|n| n.number(name)).map_or(0, mask)
}

fn typed_mask(types: Option<&TypeIndex<'_>>, name: &str) -> u64 {
    types.and_then(|t| t.enum_value("pageflags", name)).map_or(0, mask)
}

/// A flag's mask from the types or else VMCOREINFO; 0 if neither has the flag.
fn flag_mask(types: Option<&TypeIndex<'_>>, note: Option<&VmcoreInfo>, name: &str) -> u64 {
    match typed_mask(types, name) {
        0 => number_mask(note, name),
        known => known,
    }
}

fn page_flags(types: Option<&TypeIndex<'_>>, note: Option<&VmcoreInfo>) -> PageFlags {
    let typed = |name: &str| typed_mask(types, name);
    let either = |name: &str| flag_mask(types, note, name);
    let mut flags = PageFlags {
        referenced: typed("PG_referenced"),
        lru: either("PG_lru"),
        active: typed("PG_active"),
        slab: either("PG_slab"),
        reserved: typed("PG_reserved"),
        head: typed("PG_head"),
        swap_cache: either("PG_swapcache"),
        swap_backed: either("PG_swapbacked"),
    };
    if flags.head == 0 {
        let head = note.and_then(|n| n.number("PG_head_mask")).unwrap_or(0);
        flags.head = u64::try_from(head).unwrap_or(0);
    }
    if flags.reserved == 0 {
        // VMCOREINFO lacks this flag; in every kernel so far it precedes PG_private.
        flags.reserved = number_mask(note, "PG_private") >> 1;
    }
    flags
}

fn page_types(types: Option<&TypeIndex<'_>>, note: Option<&VmcoreInfo>) -> Option<PageTypes> {
    let word = |name: &str| {
        let number = note.and_then(|n| n.number(name))?;
        #[expect(clippy::cast_possible_truncation, reason = "the kernel prints a 32-bit word")]
        #[expect(clippy::cast_sign_loss, reason = "the kernel prints it signed")]
        Some(number as u32)
    };
    let typed =
        |name: &str| types?.enum_value("pagetype", name).and_then(|v| u32::try_from(v).ok());
    let buddy = word("PAGE_BUDDY_MAPCOUNT_VALUE")
        .or_else(|| typed("PGTY_buddy").map(|t| t << 24))
        .unwrap_or(!0x80);
    let mut found = PageTypes::from_buddy_word(buddy)?;
    let number = |name: &str, note_name: &str| {
        typed(name).or_else(|| word(note_name).and_then(|w| found.number(w)))
    };
    // The bit is the same in every kernel that encodes types as bits.
    let offline_bit = (found.scheme == TypeScheme::ClearedBit).then_some(0x100);
    let offline = number("PGTY_offline", "PAGE_OFFLINE_MAPCOUNT_VALUE").or(offline_bit);
    let hugetlb = number("PGTY_hugetlb", "PAGE_HUGETLB_MAPCOUNT_VALUE");
    let slab = number("PGTY_slab", "PAGE_SLAB_MAPCOUNT_VALUE");
    found.table = typed("PGTY_table");
    found.large_kmalloc = typed("PGTY_large_kmalloc");
    (found.offline, found.hugetlb, found.slab) = (offline, hugetlb, slab);
    Some(found)
}
