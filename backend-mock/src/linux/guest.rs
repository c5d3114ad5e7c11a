//! A finished guest.

use super::truth::Truth;
use super::types::Types;
use crate::MockError;
use crate::paging::translate_without;
use kaleidoscope_core::addr::{Gfn, Gpa, Gva};
use kaleidoscope_core::memory::VecMemory;
use kaleidoscope_core::registers::VcpuRegisters;
use std::ops::Range;

/// A synthetic guest: its memory, its registers, and the truth about it.
#[derive(Clone, Debug)]
pub struct MockGuest {
    /// The guest's RAM.
    pub memory: VecMemory,
    /// The truth about it.
    pub truth: Truth,
    /// Registers of each CPU, as far as introspection uses them.
    pub registers: Vec<VcpuRegisters>,
    pub(super) types: Types,
    /// Page-table entry bits that are not part of the address (memory encryption).
    pub(super) ignored: u64,
    /// Number of mappings that were made inaccessible.
    pub revoked: u64,
    /// Frames that a virtio-mem device has not plugged in.
    pub kept: Range<Gfn>,
    /// Frames of an NVDIMM.
    pub nvdimm: Range<Gfn>,
}

impl MockGuest {
    pub(super) fn new(
        memory: VecMemory,
        truth: Truth,
        registers: Vec<VcpuRegisters>,
        types: Types,
    ) -> Self {
        let (kept, nvdimm) = (Gfn(0)..Gfn(0), Gfn(0)..Gfn(0));
        Self { memory, truth, registers, types, ignored: 0, revoked: 0, kept, nvdimm }
    }

    /// Offset in bytes of `path` (`member` or `member.member`) in a structure of this guest's
    /// kernel.
    #[must_use]
    pub fn offset(&self, structure: &str, path: &str) -> Option<u64> {
        self.types.offset(structure, path).ok()
    }

    /// The address of a kernel symbol.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<Gva> {
        self.truth.kernel.symbols.get(name).copied()
    }

    /// Translates an address with the kernel's page tables, using the oracle.
    #[must_use]
    pub fn physical(&self, gva: Gva) -> Option<Gpa> {
        let (mode, root) = (self.truth.kernel.mode, self.truth.kernel.root);
        translate_without(&self.memory, mode, root, gva, self.ignored).map(|t| t.gpa)
    }

    /// Overwrites the symbol table with zeros, as if the kernel had been built without it.
    ///
    /// # Errors
    /// [`MockError::Memory`] when the table is no longer in RAM.
    pub fn wipe_kallsyms(&mut self) -> Result<(), MockError> {
        self.wipe(self.truth.kernel.kallsyms)
    }

    /// Overwrites the type information with zeros.
    ///
    /// # Errors
    /// [`MockError::Memory`] when it is no longer in RAM.
    pub fn wipe_btf(&mut self) -> Result<(), MockError> {
        self.wipe(self.truth.kernel.btf)
    }

    /// Overwrites the VMCOREINFO page with zeros.
    ///
    /// # Errors
    /// [`MockError::Memory`] when it is no longer in RAM.
    pub fn wipe_vmcoreinfo(&mut self) -> Result<(), MockError> {
        self.memory.write(self.truth.kernel.vmcoreinfo, &[0; 4096])?;
        Ok(())
    }

    fn wipe(&mut self, (gva, bytes): (Gva, u64)) -> Result<(), MockError> {
        // Both tables lie in the image, which is contiguous.
        let gpa = Gpa(gva.0.wrapping_sub(self.truth.kernel.image_offset));
        self.memory.write(gpa, &vec![0; usize::try_from(bytes).unwrap_or(0)])?;
        Ok(())
    }
}
