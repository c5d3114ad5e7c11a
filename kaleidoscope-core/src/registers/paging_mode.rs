//! The paging mode of a vCPU.

use super::VcpuRegisters;

/// CR0.PG: paging is on.
const CR0_PG: u64 = 1 << 31;
/// CR4.PAE: page-table entries have 64 bits.
const CR4_PAE: u64 = 1 << 5;
/// CR4.LA57: five levels.
const CR4_LA57: u64 = 1 << 12;
/// EFER.LMA: long mode is active.
const EFER_LMA: u64 = 1 << 10;

/// A paging mode of x86 (Intel SDM volume 3, section 5.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PagingMode {
    /// Paging is off: virtual addresses are physical addresses.
    None,
    /// Two levels of 32-bit entries, 32-bit virtual addresses.
    Legacy32,
    /// Three levels of 64-bit entries, 32-bit virtual addresses.
    Pae,
    /// Four levels, 48-bit virtual addresses.
    Long4,
    /// Five levels, 57-bit virtual addresses.
    Long5,
}

impl VcpuRegisters {
    /// The vCPU's paging mode, or `None` if the source lacks a register that determines it.
    #[must_use]
    pub fn paging_mode(&self) -> Option<PagingMode> {
        if self.cr0? & CR0_PG == 0 {
            return Some(PagingMode::None);
        }
        let cr4 = self.cr4?;
        if cr4 & CR4_PAE == 0 {
            return Some(PagingMode::Legacy32);
        }
        let long = self.efer.map(|efer| efer & EFER_LMA != 0).or(self.long_mode)?;
        Some(match (long, cr4 & CR4_LA57 != 0) {
            (false, _) => PagingMode::Pae,
            (true, false) => PagingMode::Long4,
            (true, true) => PagingMode::Long5,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(cr0: u64, cr4: u64, efer: Option<u64>) -> Option<PagingMode> {
        VcpuRegisters { cr0: Some(cr0), cr4: Some(cr4), efer, ..VcpuRegisters::default() }
            .paging_mode()
    }

    #[test]
    fn modes_follow_the_manual() {
        assert_eq!(mode(0x11, 0, Some(0)), Some(PagingMode::None));
        assert_eq!(mode(0x8005_0033, 0x90, None), Some(PagingMode::Legacy32));
        assert_eq!(mode(0x8005_0033, 0x6b0, Some(0)), Some(PagingMode::Pae));
        assert_eq!(mode(0x8005_0033, 0x6b0, Some(0xd01)), Some(PagingMode::Long4));
        assert_eq!(mode(0x8005_0033, 0x16b0, Some(0xd01)), Some(PagingMode::Long5));
        assert_eq!(mode(0x8005_0033, 0x6b0, None), None);
        assert_eq!(VcpuRegisters::default().paging_mode(), None);
        let without_efer = VcpuRegisters {
            cr0: Some(CR0_PG),
            cr4: Some(CR4_PAE),
            long_mode: Some(true),
            ..VcpuRegisters::default()
        };
        assert_eq!(without_efer.paging_mode(), Some(PagingMode::Long4));
    }
}
