//! Page tables of every x86 mode, built entry by entry, and an oracle that reads them back naively.
//!
//! Layouts follow the Intel SDM, volume 3, chapter "Paging". This module shares no code with the
//! page-table walker under test.

mod builder;
mod mode;
mod oracle;
#[cfg(test)]
mod tests;

pub use builder::{FrameRange, FrameSource, LeafTruth, PageTables, TableFrame};
pub use mode::{Attributes, Mode, PageSize, Rights};
pub use oracle::{Translation, translate, translate_without};
