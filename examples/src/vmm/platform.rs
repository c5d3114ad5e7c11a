//! The state of a PC when its kernel starts: memory layout, page tables, and registers.
//!
//! The kernel is entered in 64-bit mode, as its boot protocol requires (Linux
//! `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").

use super::kernel::Boot;
use crate::vm::Outcome;
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_kvm::machine::Machine;
use kvm_bindings::{kvm_dtable, kvm_segment};
use std::ops::Range;

/// The range without RAM below 1 MiB: adapter memory and firmware.
pub(super) const ADAPTERS: Range<u64> = 0xa_0000..0x10_0000;

/// End of RAM below 4 GiB; the rest is for interrupt controllers and other MMIO. Further RAM starts
/// at 4 GiB.
const HOLE: u64 = 0xc000_0000;

/// The GDT: two null descriptors, code, and data, at the selectors that the boot protocol requires
/// (`__BOOT_CS` is 0x10).
const SEGMENTS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const SEGMENTS_AT: u64 = 0x500;

/// Page tables that identity-map the first GiB in 2 MiB pages.
const TABLES_AT: u64 = 0x9000;
const PRESENT_WRITABLE: u64 = 0x3;
const HUGE: u64 = 0x80;

/// The layout of `mib` MiB of RAM, with the holes of a PC.
pub(super) fn layout(mib: u32) -> Outcome<MemoryLayout> {
    let bytes = u64::from(mib) << 20;
    if bytes <= ADAPTERS.end {
        return Err("a guest has at least 2 MiB".into());
    }
    let mut regions =
        vec![(Gpa(0), ADAPTERS.start), (Gpa(ADAPTERS.end), bytes.min(HOLE) - ADAPTERS.end)];
    if bytes > HOLE {
        regions.push((Gpa(1 << 32), bytes - HOLE));
    }
    Ok(MemoryLayout::new(&regions)?)
}

/// The GDT and page tables that the kernel expects in low memory.
pub(super) fn tables() -> Vec<(Gpa, Vec<u8>)> {
    let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let page = |n: u64| TABLES_AT + n * 0x1000;
    let megabytes: Vec<u64> = (0..512).map(|n| n << 21 | PRESENT_WRITABLE | HUGE).collect();
    vec![
        (Gpa(SEGMENTS_AT), bytes(&SEGMENTS)),
        (Gpa(page(0)), bytes(&[page(1) | PRESENT_WRITABLE])),
        (Gpa(page(1)), bytes(&[page(2) | PRESENT_WRITABLE])),
        (Gpa(page(2)), bytes(&megabytes)),
    ]
}

/// Sets the vCPU's registers to enter the kernel.
pub(super) fn enter(machine: &Machine, boot: &Boot) -> Outcome<()> {
    let (mut regs, mut sregs) = machine.registers(0)?;
    regs.rip = boot.entry;
    regs.rsi = boot.parameters;
    regs.rflags = 2;
    // CR0: PE and PG; CR4: PAE; EFER: LME and LMA.
    sregs.cr0 |= 0x8000_0001;
    sregs.cr4 |= 0x20;
    sregs.efer |= 0x500;
    sregs.cr3 = TABLES_AT;
    sregs.gdt = kvm_dtable { base: SEGMENTS_AT, limit: 0x1f, ..Default::default() };
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x10, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: 0x18, type_: 0x3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    Ok(machine.set_registers(0, &regs, &sregs)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_has_a_pc_s_holes() {
        let regions = |mib| {
            let layout = layout(mib).unwrap();
            let region = |r: &kaleidoscope_core::memory::RamRegion| (r.start.gpa().0, r.frames);
            layout.regions().iter().map(region).collect::<Vec<_>>()
        };
        assert_eq!(regions(64), [(0, 0xa0), (0x10_0000, 0x3f00)]);
        assert_eq!(regions(4096), [(0, 0xa0), (0x10_0000, 0xb_ff00), (1 << 32, 0x4_0000)]);
        assert!(layout(1).is_err());
    }
}
