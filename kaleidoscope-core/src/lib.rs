//! VM state coloring: what every page of a guest's memory is, found from outside.
//!
//! Read the modules as a pipeline, each using only those before it: [`addr`] and [`memory`] say
//! which frames there are, [`image`] and [`registers`] where they come from, [`paging`], [`linux`]
//! and, of other systems, [`page_tables`] gather facts in the words of [`guest_os`],
//! [`coloring`] judges them, [`color`] holds the judgement, and [`manifest`] keeps it in a file;
//! [`prefetch`] decides what a clone gets before it asks, [`replay`] judges such decisions on the
//! touches of real clones, [`recording`] keeps what clones touched for other clones, boots and
//! kernels, and [`tune`] finds the settings of policies; [`alloc`] shares out a host's memory,
//! [`dedup`] finds equal pages of its guests by their [`fingerprint`]s, [`store`] keeps one of
//! each, [`clone`] runs clones with all of this, and [`wire`] carries their pages from one host to
//! another.
//!
//! ```no_run
//! use kaleidoscope_core::coloring::{ColoringOptions, color};
//! use kaleidoscope_core::image::{Format, MemoryImage};
//!
//! let image = MemoryImage::open("ram.bin", &Format::Auto)?;
//! let coloring = color(&image, &ColoringOptions::default())?;
//! for (_, gfn, frame) in coloring.map.iter() {
//!     println!("{gfn} {} {}", frame.color, frame.temperature);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod addr;
pub mod alloc;
pub mod clone;
pub mod color;
pub mod coloring;
pub mod dedup;
pub mod fingerprint;
pub mod guest_os;
pub mod image;
pub mod linux;
pub mod manifest;
pub mod memory;
pub mod output_file;
pub mod page_tables;
pub mod paging;
pub mod prefetch;
pub mod recording;
pub mod registers;
pub mod replay;
pub mod service;
pub mod store;
mod sync;
pub mod tune;
pub mod wire;
