//! VM state coloring: what every page of a guest's memory is, found from outside.
//!
//! Read the modules as a pipeline, each using only those before it. [`addr`] and [`memory`] say
//! which frames there are, [`registers`] and [`image`] where they come from, and [`fingerprint`]
//! identifies their contents. [`color`] has the words for what a
//! frame is. [`guest_os`] has the words for facts, which page tables give of any system and
//! [`linux`] of Linux; [`coloring`] judges them, and [`manifest`] keeps the judgment in a file.
//! [`prefetch`] decides what a clone gets before it asks, [`replay`] judges such decisions on the
//! touches of real clones, [`recording`] keeps what clones touched for other clones, boots and
//! kernels, and [`tune`] finds the settings of policies. [`alloc`] shares out a host's memory,
//! [`dedup`] finds equal pages of its guests, [`store`] keeps one of each, [`clone`] runs clones
//! with all of this, and [`wire`] carries their pages from one host to another.
//!
//! Color an image and find a file's pages:
//!
//! Features decide what is built: without any, guests are colored and manifests are read; the
//! default feature `engine` adds policies and clones. `docs/features.md` lists all, with the
//! dependencies of each.
//!
//! ```no_run
//! use kaleidoscope_core::addr::FRAME_SIZE;
//! use kaleidoscope_core::coloring::{ColoringOptions, color};
//! use kaleidoscope_core::image::{Format, MemoryImage};
//! use std::error::Error;
//!
//! fn main() -> Result<(), Box<dyn Error>> {
//!     let image = MemoryImage::open("ram.bin", &Format::Auto)?;
//!     let map = color(&image, &ColoringOptions::default())?.map;
//!     for (_, gfn, frame) in map.iter() {
//!         let region = frame.region.and_then(|id| map.region(id));
//!         let Some(path) = region.and_then(|region| region.path()) else { continue };
//!         if path.ends_with("/libc.so.6") {
//!             let offset = frame.position.saturating_mul(FRAME_SIZE);
//!             println!("{gfn} is offset {offset:#x} of {path}");
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Ask a policy what to fetch for a fault:
//!
//! ```
//! use kaleidoscope_core::addr::{FrameIndex, Gpa};
//! use kaleidoscope_core::color::ColorMap;
//! use kaleidoscope_core::memory::MemoryLayout;
//! use kaleidoscope_core::prefetch::{Access, Fault, LocalityOrder, Plan, predicted};
//! use std::{error::Error, sync::Arc};
//!
//! fn main() -> Result<(), Box<dyn Error>> {
//!     let map = ColorMap::unknown(MemoryLayout::contiguous(64 << 20)?); // Or the map of an image.
//!     let locality: Arc<LocalityOrder> = map.into();
//!     let mut policy = predicted(&locality); // One for each clone.
//!     let mut plan = Plan::new(Arc::clone(&locality), 256); // At most 256 pages for a fault.
//!     let frame = locality.layout().index_of(Gpa(0x123_4000).gfn()).ok_or("no RAM there")?;
//!     let fault = Fault { frame, access: Access::Read, in_flight: false };
//!     let is_absent = |_: FrameIndex| true; // The clone has no page yet.
//!     policy.fault(&fault, &mut plan.begin(&is_absent, Some(frame)));
//!     println!("{:?}; fetch {:?}, zero {:?}", plan.answer(), plan.fetch(), plan.zero());
//!     Ok(())
//! }
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
mod codec;
pub mod color;
pub mod coloring;
#[cfg(feature = "dedup")]
pub mod dedup;
pub mod fingerprint;
pub mod guest_os;
mod identity;
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
mod region_name;
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
