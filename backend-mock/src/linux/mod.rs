//! A Linux guest in memory: kernel image, page tables, symbol table, type information, frame table,
//! page cache, tasks.

mod assemble;
mod boot;
mod btf;
mod buddy;
mod builder;
mod corrupt;
mod encryption;
mod extras;
mod frames;
mod free_lists;
mod guest;
mod image;
mod image_content;
mod kallsyms;
mod kernel;
mod page_cache;
mod populate_files;
mod populate_processes;
mod prot_none;
mod schema;
mod slab;
mod space;
mod style;
mod tasks;
#[cfg(test)]
mod tests;
mod truth;
mod types;
mod vfs;
mod virtio_mem;
mod vmcoreinfo;

pub use builder::GuestBuilder;
pub use corrupt::{Area, Damage};
pub use guest::MockGuest;
pub use style::KernelStyle;
pub use truth::{
    FileKind, FileTruth, GvaRange, KernelTruth, Role, SpaceTruth, TaskTruth, Truth, Users,
};
