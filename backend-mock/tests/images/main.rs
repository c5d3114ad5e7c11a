//! Guests and dumps as tools and hypervisors leave them: with memory encryption bits in page
//! tables, inaccessible pages, omitted pages, or unplugged memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as tests")]

mod dump;
mod encryption;
mod names;
mod prot_none;
mod unplugged;

use kaleidoscope_core::addr::Gfn;
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::coloring::{Coloring, ColoringOptions, color};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::registers::VcpuRegisters;

fn linux(memory: &dyn GuestMemory, registers: &[VcpuRegisters]) -> Coloring {
    let options = ColoringOptions::default().registers(registers.to_vec());
    color(memory, &options).unwrap()
}

/// Panics if two colorings differ in more than their notes.
#[track_caller]
fn assert_same(name: &str, found: &Coloring, plain: &Coloring) {
    let pairs = found.map.iter().zip(plain.map.iter());
    let mut other = pairs.filter(|(a, b)| a != b).map(|(a, b)| (a.1, a.2, b.2));
    let first: Option<(Gfn, _, _)> = other.next();
    assert!(first.is_none(), "{name}: {} frames differ: {first:?}", other.count() + 1);
    // Whether free frames are trusted depends on what the image holds of them.
    let rest = |map: &ColorMap| {
        let regions = map.regions().to_vec();
        (map.layout().clone(), map.kernel().clone(), regions, map.contradictions())
    };
    assert!(rest(&found.map) == rest(&plain.map), "{name}");
    assert_eq!(found.processes(), plain.processes(), "{name}");
}
