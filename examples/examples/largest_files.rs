//! A minimal program: lists the files that a guest caches in memory, and its processes.
//!
//! `cargo run --release -p kaleidoscope-examples --example largest_files -- IMAGE`

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it finds")]

use kaleidoscope_core::color::FrameKind;
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::image::{Format, MemoryImage};
use std::error::Error;

/// Number of files to list.
const MAX_FILES: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: largest_files IMAGE")?;
    // Maps the file: pages are read on first access.
    let image = MemoryImage::open(&path, &Format::Auto)?;
    // Needs neither registers nor symbols: the guest's memory contains its kernel's symbols and
    // types.
    let coloring = color(&image, &ColoringOptions::default())?;

    // A region is a set of related frames, such as the cached pages of a file.
    let regions = coloring.map.regions().iter();
    let mut files: Vec<_> = regions.filter(|region| region.kind == FrameKind::File).collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.frames));
    for file in files.iter().take(MAX_FILES) {
        let path = file.path().unwrap_or("(no path)");
        println!("{:>8} KiB  {path}", u64::from(file.frames) * 4);
    }
    for process in coloring.processes() {
        let pid = process.pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        println!("{pid:>8} {:<16} {} anonymous frames", process.name, process.anonymous_frames);
    }
    // Notes list everything that could not be read.
    coloring.notes().iter().for_each(|note| eprintln!("note: {note}"));
    Ok(())
}
