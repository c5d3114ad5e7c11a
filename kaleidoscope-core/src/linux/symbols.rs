//! The kernel symbols that introspection uses, from whichever table has them.

use super::kallsyms::Kallsyms;
use super::vmcoreinfo::VmcoreInfo;
use crate::addr::Gva;

macro_rules! symbols {
    ($($(#[$doc:meta])* $field:ident),+ $(,)?) => {
        /// Addresses of symbols; `None` where no table has the symbol.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub(crate) struct Symbols {
            $($(#[$doc])* pub(crate) $field: Option<Gva>),+
        }

        /// The symbols' names, in the order of the fields.
        const NAMES: &[&str] = &[$(stringify!($field)),+];

        impl Symbols {
            fn from_addresses(addresses: impl IntoIterator<Item = Option<Gva>>) -> Self {
                let mut addresses = addresses.into_iter();
                Self { $($field: addresses.next().flatten()),+ }
            }

            fn or(self, other: Self) -> Self {
                Self { $($field: self.$field.or(other.$field)),+ }
            }
        }
    };
}

symbols! {
    /// First address of the image.
    _text,
    /// First executable address.
    _stext,
    /// End of executable addresses.
    _etext,
    __start_rodata,
    __end_rodata,
    /// End of the image.
    _end,
    __start_BTF,
    __stop_BTF,
    linux_banner,
    /// Pointer to the VMCOREINFO text.
    vmcoreinfo_data,
    init_top_pgt,
    swapper_pg_dir,
    /// Variable: first address of the direct map.
    page_offset_base,
    /// Variable: first address of the vmalloc area.
    vmalloc_base,
    /// Variable: first address of the frame table.
    vmemmap_base,
    /// Variable: the memory sections' table (`struct mem_section **`).
    mem_section,
    init_task,
    /// Variable: first address of the first per-CPU chunk.
    pcpu_base_addr,
    /// Variable (`int`): size of one CPU's unit.
    pcpu_unit_size,
    /// Variable (`int`): number of units.
    pcpu_nr_units,
    /// List of loaded modules.
    modules,
    /// Array: distance of each CPU's per-CPU area.
    __per_cpu_offset,
}

impl Symbols {
    /// Collects every symbol from the symbol table and from VMCOREINFO; the table wins.
    pub(crate) fn collect(kallsyms: Option<&Kallsyms<'_>>, note: Option<&VmcoreInfo>) -> Self {
        let from_table = kallsyms.map(|k| Self::from_addresses(k.lookup(NAMES)));
        let from_note = note.map(|n| Self::from_addresses(NAMES.iter().map(|name| n.symbol(name))));
        from_table.unwrap_or_default().or(from_note.unwrap_or_default())
    }

    /// The kernel's own root page table.
    pub(crate) fn root(&self) -> Option<Gva> {
        self.init_top_pgt.or(self.swapper_pg_dir)
    }
}
