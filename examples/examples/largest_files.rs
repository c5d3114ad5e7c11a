//! The smallest useful program: which files does a guest keep in memory, and which processes run?
//!
//! `cargo run --release -p kaleidoscope-examples --example largest_files -- IMAGE`

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it finds")]

use kaleidoscope_core::color::FrameKind;
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::image::{Format, MemoryImage};
use std::error::Error;

/// Files that are listed.
const MOST: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: largest_files IMAGE")?;
    // Opening maps the file: nothing is read before it is asked for.
    let image = MemoryImage::open(&path, &Format::Auto)?;
    // No registers, no symbols: the guest's kernel describes itself in its own memory.
    let coloring = color(&image, &ColoringOptions::default())?;

    // A region is a set of related frames; a file's cache is one.
    let regions = coloring.map.regions().iter();
    let mut files: Vec<_> = regions.filter(|region| region.kind == FrameKind::File).collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.frames));
    for file in files.iter().take(MOST) {
        let path = file.path().unwrap_or("(no path)");
        println!("{:>8} KiB  {path}", u64::from(file.frames) * 4);
    }
    for process in coloring.processes() {
        let pid = process.pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        println!("{pid:>8} {:<16} {} anonymous frames", process.name, process.anonymous_frames);
    }
    // What could not be read is told, never guessed.
    coloring.notes().iter().for_each(|note| eprintln!("note: {note}"));
    Ok(())
}
