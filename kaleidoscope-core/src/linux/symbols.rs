//! The kernel symbols that introspection uses, from any table that has them.

use super::kallsyms::Kallsyms;
use super::vmcoreinfo::VmcoreInfo;
use crate::addr::Gva;

macro_rules! symbols {
    ($($(#[$doc:meta])* $field:ident),+ $(,)?) => {
        /// Addresses of symbols; `None` where no table has the symbol.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[expect(non_snake_case, reason = "the fields are named as the kernel names the symbols")]
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

            /// These symbols, with missing ones taken from `other`.
            pub(crate) fn or(self, other: Self) -> Self {
                Self { $($field: self.$field.or(other.$field)),+ }
            }
        }
    };
}

symbols! {
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
    init_task,
    /// Variable (`atomic_t`): the CPU that panicked.
    panic_cpu,
    /// Variable (`enum system_states`): whether the kernel is booting, running or shutting down.
    system_state,
    /// The root of the tree of physical address ranges (`struct resource`).
    iomem_resource,
    /// Variable: first address of the first per-CPU chunk.
    pcpu_base_addr,
    /// Variable (`int`): size of one CPU's unit.
    pcpu_unit_size,
    /// Variable (`int`): number of units.
    pcpu_nr_units,
}

impl Symbols {
    /// The symbols in the kernel's symbol table.
    pub(crate) fn from_kallsyms(table: Option<&Kallsyms<'_>>) -> Self {
        table.map(|t| Self::from_addresses(t.lookup(NAMES))).unwrap_or_default()
    }

    /// The symbols in VMCOREINFO.
    pub(crate) fn from_note(note: Option<&VmcoreInfo>) -> Self {
        let addresses = |n: &VmcoreInfo| Self::from_addresses(NAMES.iter().map(|s| n.symbol(s)));
        note.map(addresses).unwrap_or_default()
    }

    /// Address of the kernel's own root page table.
    pub(crate) fn root(&self) -> Option<Gva> {
        self.init_top_pgt.or(self.swapper_pg_dir)
    }
}
