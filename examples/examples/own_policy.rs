//! Judges a policy of one's own on a trace, beside two of ours, without a VM.
//!
//! Reads `ram.bin` and `trace.csv` in the current folder. A trace has the columns `t_us` and `gfn`;
//! `kaleidoscope lab trace` makes some. The program between the markers is quoted in
//! docs/policy-author.md; a test compares the two.

#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

// door: begin
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::image::{Format, MemoryImage};
use kaleidoscope_core::prefetch::*;
use kaleidoscope_core::replay::{CostModel, Replay, Trace, replay};
use std::{error::Error, fs::File, sync::Arc};

/// The rest of the region in its natural order, at most so many frames.
struct Readahead(u32);

impl PrefetchPolicy for Readahead {
    fn name(&self) -> &str {
        "readahead"
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        planner.answer_with_zeros(); // Only if the frame is free.
        let locality = planner.locality();
        let Some(at) = locality.position(fault.frame) else { return };
        let Some(stretch) = locality.stretch(fault.frame) else { return };
        let end = locality.range(stretch).end.min(at.saturating_add(self.0));
        for frame in (at..end).filter_map(|position| locality.at(position)) {
            planner.fetch_used(frame); // Refused if free, present, planned, or over budget.
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let image = MemoryImage::open("ram.bin", &Format::Auto)?;
    let locality: Arc<LocalityOrder> = color(&image, &ColoringOptions::default())?.map.into();
    let trace = Trace::from_csv(File::open("trace.csv")?, locality.layout())?;
    let own: Box<dyn PrefetchPolicy> = Box::new(Readahead(16));
    for mut policy in [own, Box::new(Demand), predicted(&locality)] {
        let metrics = replay(&trace, &locality, &mut *policy, &Replay::new(CostModel::GBE25));
        println!("{}: {metrics}", policy.name());
    }
    Ok(())
}
// door: end
