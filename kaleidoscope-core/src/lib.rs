//! VM state coloring: what every page of a guest's memory is, found from outside.
//!
//! Read the modules as a pipeline, each using only those before it. [`addr`] and [`memory`] say
//! which frames there are, [`registers`] and [`image`] where they come from, and [`fingerprint`]
//! identifies their contents. [`paging`] walks page tables, and [`color`] has the words for what a
//! frame is. [`guest_os`] has the words for facts, which [`page_tables`] gathers of any system and
//! [`linux`] of Linux; [`coloring`] judges them, and [`manifest`] keeps the judgment in a file.
//! [`prefetch`] decides what a clone gets before it asks, [`replay`] judges such decisions on the
//! touches of real clones, [`recording`] keeps what clones touched for other clones, boots and
//! kernels, and [`tune`] finds the settings of policies. [`alloc`] shares out a host's memory,
//! [`dedup`] finds equal pages of its guests, [`store`] keeps one of each, [`clone`] runs clones
//! with all of this, and [`wire`] carries their pages from one host to another.
//!
//! Color an image and find a file's pages:
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

pub mod addr;
pub mod alloc;
pub mod clone;
mod codec;
pub mod color;
pub mod coloring;
pub mod dedup;
pub mod fingerprint;
pub mod guest_os;
mod identity;
pub mod image;
pub mod linux;
pub mod manifest;
pub mod memory;
pub mod output_file;
pub mod page_tables;
pub mod paging;
pub mod prefetch;
pub mod recording;
mod region_name;
pub mod registers;
pub mod replay;
pub mod service;
pub mod store;
mod sync;
pub mod tune;
pub mod wire;
