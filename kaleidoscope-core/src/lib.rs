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
//! let image = MemoryImage::open("ram.bin".as_ref(), &Format::Auto)?;
//! let coloring = color(&image, &ColoringOptions::default())?;
//! for (_, gfn, frame) in coloring.map.iter() {
//!     println!("{gfn} {} {}", frame.color, frame.temperature);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// An item that only a feature uses, or only a fuzz target, is unused without that feature. The lints
// hold where every feature is on, as in the workspace's own builds.
#![cfg_attr(
    not(all(feature = "tls", feature = "dedup", feature = "internals")),
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "used by features that are off, or by fuzz targets"
    )
)]

pub mod addr;
#[cfg(feature = "engine")]
pub mod alloc;
#[cfg(feature = "engine")]
pub mod clone;
pub mod color;
pub mod coloring;
#[cfg(feature = "dedup")]
pub mod dedup;
pub mod fingerprint;
pub mod guest_os;
pub mod image;
pub mod linux;
pub mod manifest;
pub mod memory;
#[cfg(feature = "write")]
pub mod output_file;
pub mod page_tables;
pub mod paging;
#[cfg(feature = "policies")]
pub mod prefetch;
#[cfg(feature = "replay")]
pub mod recording;
pub mod registers;
#[cfg(feature = "replay")]
pub mod replay;
#[cfg(feature = "engine")]
pub mod service;
#[cfg(feature = "engine")]
pub mod store;
#[cfg(feature = "engine")]
mod sync;
#[cfg(feature = "replay")]
pub mod tune;
#[cfg(feature = "wire")]
pub mod wire;
