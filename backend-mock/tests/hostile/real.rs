//! Random and planted damage to images of real guests.

use crate::damage::{damage, structures};
use crate::target::{DamagedResult, Target};
use kaleidoscope_core::addr::{Gfn, Gpa};
use kaleidoscope_core::color::Color;
use kaleidoscope_core::image::{Format, LayoutFile, MemoryImage, RawLayout};
use kaleidoscope_core::registers::parse_qemu_text;
use kaleidoscope_mock::{PatchedMemory, Rng};
use std::path::Path;
use std::time::Duration;

/// Number of damaged copies of each guest.
const RUNS: u64 = 300;

/// Guests with more RAM are skipped: they take longer and show nothing new.
const MAX_RAM: u64 = 2 << 30;

#[test]
fn real_guests() {
    let Some(root) = std::env::var_os("KALEIDOSCOPE_GUESTS") else {
        println!("KALEIDOSCOPE_GUESTS is not set: no real guests to attack");
        return;
    };
    let mut guests: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    guests.retain(|g| g.join("ram.bin").is_file());
    guests.retain(|g| g.join("ram.bin").metadata().is_ok_and(|m| m.len() <= MAX_RAM));
    guests.sort();
    assert!(!guests.is_empty(), "no guests in KALEIDOSCOPE_GUESTS");
    for guest in guests {
        attack(&guest);
    }
}

fn attack(folder: &Path) {
    let layout = LayoutFile::open(&folder.join("layout.txt")).unwrap();
    let format = Format::Raw(RawLayout::File(layout));
    // Read into memory, since a mutable file would be copied for each of the many colorings.
    let bytes = std::fs::read(folder.join("ram.bin")).unwrap();
    let image = MemoryImage::from_bytes(bytes, &format).unwrap();
    let registers = std::fs::read_to_string(folder.join("regs.txt")).unwrap();
    let name = folder.file_name().unwrap().to_string_lossy();
    let target = Target::new(&name, &image, parse_qemu_text(&registers).unwrap());
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    let mut note = |DamagedResult { cost, .. }: DamagedResult| {
        slowest = slowest.max(cost.time);
        largest = largest.max(cost.peak);
    };
    let structures = structures(&target);
    for run in 0..RUNS {
        let mut rng = Rng::new(run);
        let group = &structures[usize::try_from(run).unwrap() % structures.len()];
        let mut memory = PatchedMemory::new(&image);
        damage(&mut memory, group, &mut rng);
        note(target.color_damaged(&format!("run {run} on {}", group.name), &memory, false));
    }
    // Page tables that point back to themselves, at several levels.
    let tables = target.frames_of(Color::PageTable);
    for (part, run) in [(1, 0), (2, 0), (2, 1), (8, 3), (64, 5)] {
        let mut memory = PatchedMemory::new(&image);
        for &Gfn(gfn) in tables.iter().skip(run).step_by(part) {
            for index in 0..256 {
                let entry = Gfn(gfn).gpa().0 | 0x67;
                memory.write(Gpa(Gfn(gfn).gpa().0 + index * 8), &entry.to_le_bytes()).unwrap();
            }
        }
        note(target.color_damaged(&format!("every {part}th page table a cycle"), &memory, false));
    }
    // A frame table that repeats one record.
    let table = target.frames_of(Color::FrameTable);
    for seed in 0..16 {
        let mut rng = Rng::new(seed);
        let mut record = [0; 64];
        target.memory_read(table[rng.index(table.len())], &mut record);
        for byte in &mut record {
            if rng.one_in(20) {
                *byte = u8::try_from(rng.below(256)).unwrap();
            }
        }
        let mut memory = PatchedMemory::new(&image);
        for gfn in &table {
            memory.write(gfn.gpa(), &record.repeat(64)).unwrap();
        }
        note(target.color_damaged(&format!("one record everywhere, seed {seed}"), &memory, false));
    }
    println!("{name}: slowest {slowest:?}, largest {largest} bytes");
}
