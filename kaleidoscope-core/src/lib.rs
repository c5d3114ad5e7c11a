//! VM state coloring: what every page of a guest's memory is, found from outside.
//!
//! Read the modules as a pipeline, each using only those before it: [`addr`] and [`memory`] say
//! which frames there are, [`image`] and [`registers`] where they come from, [`linux`] and, of
//! other systems, their page tables give facts in the words of [`guest_os`],
//! [`coloring`] judges them, [`color`] holds the judgement, and [`manifest`] keeps it in a file;
//! [`prefetch`] decides what a clone gets before it asks, [`replay`] judges such decisions on the
//! touches of real clones, [`recording`] keeps what clones touched for other clones, boots and
//! kernels, and [`tune`] finds the settings of policies; [`alloc`] shares out a host's memory,
//! [`dedup`] finds equal pages of its guests by their [`fingerprint`]s, [`store`] keeps one of
//! each, [`clone`] runs clones with all of this, and [`wire`] carries their pages from one host to
//! another.
//!
//! Features decide what is built: without any, guests are colored and manifests are read; the
//! default feature `engine` adds policies and clones. `docs/features.md` lists all, with the
//! dependencies of each.
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

// An item that only a feature uses, or only a fuzz target, is unused without that feature. The
// lints hold where every feature is on, as in the workspace's own builds.
#![cfg_attr(
    not(all(feature = "tls", feature = "dedup", feature = "hooks", feature = "internals")),
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
mod page_tables;
mod paging;
#[cfg(feature = "policies")]
pub mod prefetch;
#[cfg(feature = "replay")]
pub mod recording;
pub mod registers;
#[cfg(feature = "replay")]
pub mod replay;
#[cfg(feature = "engine")]
pub mod service;
mod setters;
#[cfg(feature = "engine")]
pub mod store;
#[cfg(feature = "engine")]
mod sync;
#[cfg(feature = "replay")]
pub mod tune;
#[cfg(feature = "wire")]
pub mod wire;

/// Inner parts, for fuzz targets, tests and benchmarks. Nothing here is stable.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    /// Parser of type information.
    pub mod btf {
        pub use crate::linux::btf::*;
    }
    /// Parser of symbol tables.
    pub mod kallsyms {
        pub use crate::linux::kallsyms::*;
    }
    /// Parser of VMCOREINFO texts.
    pub mod vmcoreinfo {
        pub use crate::linux::vmcoreinfo::*;
    }
    /// The page-table walker.
    pub mod paging {
        pub use crate::paging::*;
    }
    /// The messages between page servers and clients.
    #[cfg(feature = "wire")]
    pub mod protocol {
        pub use crate::wire::protocol::*;
    }
}
