//! Parses the notes that describe a vCPU.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::fields::{u32_at, u64_at};
use crate::registers::VcpuRegisters;

/// Size in bytes of Linux's `struct elf_prstatus` on x86-64.
const PRSTATUS64: usize = 336;
/// The same on i386.
const PRSTATUS32: usize = 144;

/// Parses QEMU's note (`QEMUCPUState` in `target/i386/arch_dump.c`): version and size, 16 general
/// registers, RIP and RFLAGS, ten segments of 24 bytes (selector, limit, flags, padding, base), CR0
/// to CR4, and since QEMU 3.0 the base that `swapgs` exchanges. All registers are 64 bits wide,
/// also for 32-bit guests.
///
/// `Some(None)` for an unknown version, `None` if the note is too short.
#[expect(clippy::option_option, reason = "short notes are errors, unknown ones are skipped")]
pub(super) fn parse_qemu(note: &[u8], long_mode: bool) -> Option<Option<VcpuRegisters>> {
    if u32_at(note, 0)? != 1 {
        return Some(None);
    }
    let flags_ss = u32_at(note, 280)?;
    Some(Some(VcpuRegisters {
        cpu: 0,
        rip: u64_at(note, 136)?,
        rsp: u64_at(note, 56)?,
        cr0: Some(u64_at(note, 392)?),
        cr3: Some(u64_at(note, 416)?),
        cr4: Some(u64_at(note, 424)?),
        efer: None,
        long_mode: Some(long_mode),
        gs_base: Some(u64_at(note, 264)?),
        idt_base: Some(u64_at(note, 384)?),
        gdt_base: Some(u64_at(note, 360)?),
        kernel_gs_base: u64_at(note, 432),
        cpl: privilege(flags_ss >> 13),
    }))
}

/// Parses `struct elf_prstatus`, with which Linux describes a thread, and in its crash dumps a CPU.
/// The note has no control registers. Its GS base is that of the thread and not of the CPU, so it
/// is ignored.
pub(super) fn parse_prstatus(note: &[u8]) -> Option<VcpuRegisters> {
    let (rip, rsp, selector_cs) = match note.len() {
        PRSTATUS64 => (u64_at(note, 240)?, u64_at(note, 264)?, u32_at(note, 248)?),
        PRSTATUS32 => {
            (u64::from(u32_at(note, 120)?), u64::from(u32_at(note, 132)?), u32_at(note, 124)?)
        }
        _ => return None,
    };
    Some(VcpuRegisters { rip, rsp, cpl: privilege(selector_cs), ..VcpuRegisters::default() })
}

/// The two low bits as a privilege level. CS's selector holds it outside real mode, SS's descriptor
/// always.
fn privilege(bits: u32) -> Option<u8> {
    u8::try_from(bits & 3).ok()
}
