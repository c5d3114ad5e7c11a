//! Asks a policy what to fetch for a fault. Needs no VM and no image.
//!
//! The program between the markers is quoted in README.md; a test compares the two.

#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

// door: begin
use kaleidoscope_core::addr::{FrameIndex, Gpa};
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::prefetch::{Access, Fault, LocalityOrder, Plan, predicted};
use std::{error::Error, sync::Arc};

fn main() -> Result<(), Box<dyn Error>> {
    let map = ColorMap::unknown(MemoryLayout::contiguous(64 << 20)?); // Or the map of an image.
    let locality: Arc<LocalityOrder> = map.into();
    let mut policy = predicted(&locality); // One for each clone.
    let mut plan = Plan::new(Arc::clone(&locality), 256); // At most 256 pages for a fault.
    let frame = locality.layout().index_of(Gpa(0x123_4000).gfn()).ok_or("no RAM there")?;
    let fault = Fault { frame, access: Access::Read, in_flight: false };
    let is_absent = |_: FrameIndex| true; // The clone has no page yet.
    policy.fault(&fault, &mut plan.begin(&is_absent, Some(frame)));
    println!("{:?}; fetch {:?}, zero {:?}", plan.answer(), plan.fetch(), plan.zero());
    Ok(())
}
// door: end
