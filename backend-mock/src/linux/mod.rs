//! A Linux guest in memory: kernel image, page tables, symbol table, type information, frame table,
//! page cache, tasks.

mod assemble;
mod boot;
mod builder;
mod corrupt;
mod encryption;
mod extras;
mod guest;
mod image;
mod kernel;
mod memory;
mod populate_files;
mod processes;
mod schema;
mod style;
#[cfg(test)]
mod tests;
mod truth;
mod types;
mod vfs;

pub use builder::GuestBuilder;
pub use corrupt::{Area, Damage};
pub use guest::MockGuest;
pub use style::KernelStyle;
pub use truth::{
    FileKind, FileTruth, GvaRange, KernelTruth, Role, SpaceTruth, TaskTruth, Truth, Users,
};
