//! Command-line arguments that several commands share: one file for each group of flags, and for
//! each kind of value.

mod coloring;
mod frame;
mod image;
mod layout;
mod memory_size;
mod or_subcommand;
mod seconds;

pub(crate) use coloring::{ColoringArgs, RuleArgs};
pub(crate) use frame::FrameArgs;
pub(crate) use image::ImageArgs;
pub(crate) use layout::{ImageFormat, LayoutArgs, layout_text};
pub(crate) use memory_size::{MemorySize, memory_size};
pub(crate) use or_subcommand::OrSubcommand;
pub(crate) use seconds::{seconds, some_seconds};
