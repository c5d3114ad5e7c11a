//! What a Linux kernel says of itself in its own memory.
//!
//! Three descriptions travel with every modern kernel, and together they replace a symbol file and a profile:
//!
//! * [`vmcoreinfo`]: a text page meant for crash-dump tools (a few addresses, sizes and offsets);
//! * [`kallsyms`]: the compressed symbol table (addresses by name);
//! * [`btf`]: the type information (field offsets, sizes, enumeration values).
//!
//! [`Linux`] uses them in layers. VMCOREINFO and page tables alone say which frames are free, slab, anonymous, shared, page
//! cache and page tables; symbols and types add names. All of it is read from guest memory and therefore hostile: every
//! parser here is bounded and returns precise errors.
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
mod dentries;
mod files;
mod frame_reader;
mod frame_table;
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
mod symbols;
mod tasks;
mod text;
mod user_spaces;
mod view;
pub mod vmcoreinfo;

pub use frame_table::FrameTableError;
pub use inspect::Fact;
pub use introspect::{Linux, LinuxError};
pub use locate::LocateError;
