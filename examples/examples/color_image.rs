//! Colors a memory image, and finds the pages of a file in it: `ram.bin` in the current folder.
//!
//! The program between the markers is quoted in README.md; a test compares the two.

#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

// door: begin
use kaleidoscope_core::addr::FRAME_SIZE;
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::image::{Format, MemoryImage};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let image = MemoryImage::open("ram.bin", &Format::Auto)?;
    let map = color(&image, &ColoringOptions::default())?.map;
    for (_, gfn, frame) in map.iter() {
        let region = frame.region.and_then(|id| map.region(id));
        let Some(path) = region.and_then(|region| region.path()) else { continue };
        if path.ends_with("/libc.so.6") {
            let offset = frame.position.saturating_mul(FRAME_SIZE);
            println!("{gfn} is offset {offset:#x} of {path}");
        }
    }
    Ok(())
}
// door: end
