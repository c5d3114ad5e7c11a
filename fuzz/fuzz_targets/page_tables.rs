//! Any bytes as the memory of a guest of which nothing is known but where its page tables begin. Every frame has a place, and the facts make
//! a color map.
#![no_main]

use kaleidoscope_core::coloring::{ColoringOptions, color_by_page_tables};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use kaleidoscope_core::registers::VcpuRegisters;
use libfuzzer_sys::fuzz_target;

const FRAMES: u64 = 12;

fuzz_target!(|data: &[u8]| {
    let [mode, first, second, data @ ..] = data else { return };
    let layout = MemoryLayout::contiguous(FRAMES << 12).expect("a layout");
    // Entries of 8 bytes, each with its place: tables are sparse.
    let mut bytes = vec![0; (FRAMES << 12) as usize];
    for entry in data.chunks_exact(8) {
        let place = usize::from(u16::from_le_bytes([entry[0], entry[1]])) % (bytes.len() / 8);
        let value = [entry[2], entry[3], entry[4] & 0x0f, 0, 0, 0, 0, entry[5]];
        bytes[place * 8..place * 8 + 8].copy_from_slice(&value);
    }
    let memory = VecMemory::from_bytes(layout, bytes);
    let registers = [first, second].map(|root| VcpuRegisters {
        cr0: Some(1 << 31),
        cr3: Some(u64::from(*root) << 12),
        cr4: Some(u64::from(mode & 1) << 5 | u64::from(mode >> 1 & 1) << 12),
        efer: Some(u64::from(mode >> 2 & 1) << 10),
        ..VcpuRegisters::default()
    });
    let options = ColoringOptions::default().registers(registers.to_vec());
    let coloring = color_by_page_tables(&memory, &options).expect("registers tell of page tables");
    let frames = coloring.map.iter().filter(|(_, _, frame)| frame.region.is_some()).count();
    let regions: u32 = coloring.facts.regions.iter().map(|region| region.frames).sum();
    assert_eq!(frames, regions as usize);
});
