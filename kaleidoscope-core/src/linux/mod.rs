//! Introspection of a Linux kernel from its own memory.
//!
//! Every modern kernel carries three descriptions that together replace a symbol file and a
//! profile:
//!
//! * `vmcoreinfo`: a text page meant for crash-dump tools (a few addresses, sizes and offsets);
//! * `kallsyms`: the compressed symbol table (addresses by name);
//! * `btf`: the type information (field offsets, sizes, enumeration values).
//!
//! One description comes with this library: `common_symbols`, the symbols that every workload
//! uses in any kernel.
//!
//! [`Linux`] uses them in layers. VMCOREINFO and page tables alone suffice to tell free, slab,
//! anonymous, shared, page cache and page table frames apart; symbols and types add names. All of
//! them are read from guest memory and are therefore hostile: every parser here is bounded and
//! returns precise errors.
//!
//! # Resource limits with a hostile guest
//! Coloring takes at most 64 MiB plus 512 bytes per frame of RAM, which is an eighth of the RAM;
//! about 110 bytes per frame are usual. If the memory is not mapped in one piece
//! ([`GuestMemory::slice`](crate::memory::GuestMemory::slice)), a copy of the kernel image takes up
//! to another 256 MiB. Time depends only on the size of RAM, because everything that is followed is
//! charged to budgets proportional to this size: page tables, mappings, tasks, address spaces,
//! directory entries, bytes of names. Work that exceeds a budget is left out and reported in
//! [notes](crate::guest_os::Note). Names contain no control characters; they are escaped as
//! described in [`name`](crate::guest_os::name). The hostile-guest tests in `kaleidoscope-mock`
//! check these limits against planted cycles, floods of names and random damage.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "tests know their numbers"
    )
)]

mod assemble;
pub(crate) mod btf;
mod bytes;
pub(crate) mod common_symbols;
mod frames;
mod image_bytes;
mod inspect;
mod introspect;
pub(crate) mod kallsyms;
mod kernel;
mod kernel_areas;
mod locate;
mod names;
mod profile;
mod regions;
mod running;
mod symbols;
mod tasks;
mod user_spaces;
mod view;
pub(crate) mod vmcoreinfo;

pub use common_symbols::{CommonSymbols, CommonSymbolsError};
#[cfg(feature = "replay")]
pub use common_symbols::{Lesson, Pruning, SymbolScores, SymbolsByPage, learn};
pub use introspect::Linux;
