//! What a Linux kernel says of itself in its own memory.
//!
//! Three descriptions travel with every modern kernel, and together they replace a symbol file and
//! a profile:
//!
//! * [`vmcoreinfo`]: a text page meant for crash-dump tools (a few addresses, sizes and offsets);
//! * [`kallsyms`]: the compressed symbol table (addresses by name);
//! * [`btf`]: the type information (field offsets, sizes, enumeration values).
//!
//! One description comes along with the library: [`common_symbols`], what every workload uses of
//! any kernel.
//!
//! [`Linux`] uses them in layers. VMCOREINFO and page tables alone say which frames are free, slab,
//! anonymous, shared, page cache and page tables; symbols and types add names. All of it is read
//! from guest memory and therefore hostile: every parser here is bounded and returns precise
//! errors.
//!
//! # What a hostile guest can cost
//! Coloring takes at most 64 MiB and 512 bytes for each frame of RAM, an eighth of the RAM; some
//! 110 bytes per frame are usual. Where the memory is not mapped in one piece
//! ([`GuestMemory::slice`](crate::memory::GuestMemory::slice)), a copy of the kernel image comes on
//! top, of at most 256 MiB. Time grows with the size of RAM alone, because everything that is
//! followed is paid for from budgets in proportion to it: page tables, mappings, tasks, address
//! spaces, directory entries, bytes of names. What no budget covers is left out, and
//! [notes](crate::guest_os::Note) say so. Names that are shown contain no control characters; they
//! are written as [`name`](crate::guest_os::name) says. The tests of hostile guests in
//! `kaleidoscope-mock` hold all of this against planted cycles, floods of names and blind damage.
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
pub mod btf;
mod bytes;
pub mod common_symbols;
mod dentries;
mod files;
mod frame_reader;
mod frame_table;
mod free_lists;
mod image_bytes;
mod inspect;
mod introspect;
pub mod kallsyms;
mod kernel;
mod kernel_areas;
mod locate;
mod name_budget;
mod page_types;
mod profile;
mod regions;
mod running;
mod symbols;
mod tasks;
mod unplugged;
mod user_spaces;
mod view;
pub mod vmcoreinfo;

pub use common_symbols::CommonSymbols;
pub use frame_table::FrameTableError;
pub use inspect::Fact;
pub use introspect::{Linux, LinuxError};
pub use locate::LocateError;
