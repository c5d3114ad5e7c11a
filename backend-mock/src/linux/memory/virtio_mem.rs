//! A virtio-mem device with unplugged memory, and an NVDIMM: memory without a frame table.

use crate::linux::guest::MockGuest;
use crate::linux::image::Section;
use crate::linux::kernel::{Kernel, SECTION_FRAMES};
use crate::linux::truth::Role;
use crate::linux::types::{Placement, Types, U64, member, pointer, void_pointer};
use crate::{MockError, Rng};
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gva};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use std::ops::Range;

/// Flags of `struct resource`.
const MEM: u64 = 0x200;
const SYSTEM_RAM: u64 = MEM | 0x0100_0000;
const DRIVER_MANAGED: u64 = 0x0200_0000;
const EXCLUSIVE: u64 = 0x0800_0000;
const BUSY: u64 = 0x8000_0000;

/// Frames of the NVDIMM.
const NVDIMM_FRAMES: u64 = 16;

/// Location of memory that the kernel does not manage.
#[derive(Clone, Debug)]
pub(in crate::linux) struct Unmanaged {
    /// The device's unplugged frames.
    pub(in crate::linux) kept: Range<Gfn>,
    pub(in crate::linux) nvdimm: Range<Gfn>,
}

impl Unmanaged {
    /// Places it after the RAM of `layout`, each part in its own memory sections.
    pub(in crate::linux) fn behind(layout: &MemoryLayout, kept_frames: u64) -> Self {
        let section = |gfn: u64| gfn.next_multiple_of(SECTION_FRAMES);
        let kept = section(layout.end_gfn().0);
        let nvdimm = section(kept + kept_frames);
        Self {
            kept: Gfn(kept)..Gfn(kept + kept_frames),
            nvdimm: Gfn(nvdimm)..Gfn(nvdimm + NVDIMM_FRAMES),
        }
    }
}

/// `struct resource`.
pub(in crate::linux) fn resource_type(types: &mut Types, rng: &mut Rng) -> Result<(), MockError> {
    let resource = |name| member(name, pointer("resource"));
    let members = vec![
        member("start", U64),
        member("end", U64),
        member("name", void_pointer()),
        member("flags", U64),
        member("desc", U64),
        resource("parent"),
        resource("sibling"),
        resource("child"),
    ];
    types.structure("resource", Placement::Fixed, rng, members)
}

impl Kernel {
    /// Writes the resource tree: RAM, the device's region with the plugged memory at its start, and
    /// the NVDIMM.
    pub(in crate::linux) fn resources(&mut self, unmanaged: &Unmanaged) -> Result<(), MockError> {
        let addresses =
            |frames: Range<u64>| (frames.start * FRAME_SIZE, frames.end * FRAME_SIZE - 1);
        let regions = self.frames.layout().regions().to_vec();
        let end = |r: &kaleidoscope_core::memory::RamRegion| r.start.0 + u64::from(r.frames);
        let (Some(low), Some(high)) = (regions.first(), regions.last()) else { return Ok(()) };
        let given = high.start.0..end(high).next_multiple_of(SECTION_FRAMES);
        let device = high.start.0..unmanaged.kept.end.0;
        let nvdimm = unmanaged.nvdimm.start.0..unmanaged.nvdimm.end.0;
        let root = self.image.place(Section::Data, "iomem_resource", 64, 8)?;
        let mut node = || self.image.place(Section::Data, "", 64, 8);
        let (ram, region, blocks, dimm) = (node()?, node()?, node()?, node()?);
        let none = Gva(0);
        for (at, name, (start, end), flags, [parent, sibling, child]) in [
            (root, "PCI mem", (0, u64::MAX), MEM, [none, none, ram]),
            (
                ram,
                "System RAM",
                addresses(low.start.0..end(low)),
                SYSTEM_RAM | BUSY,
                [root, region, none],
            ),
            (region, "virtio3", addresses(device), SYSTEM_RAM | EXCLUSIVE, [root, dimm, blocks]),
            (
                blocks,
                "System RAM (virtio_mem)",
                addresses(given),
                SYSTEM_RAM | DRIVER_MANAGED | BUSY,
                [region, none, none],
            ),
            (dimm, "Persistent Memory", addresses(nvdimm), MEM, [root, none, none]),
        ] {
            let text = self.image.place(Section::Rodata, "", name.len() as u64 + 1, 1)?;
            self.store_bytes(text.0, name.as_bytes())?;
            let words = [start, end, text.0, flags, 0, parent.0, sibling.0, child.0];
            for (word, at) in words.into_iter().zip((at.0..).step_by(8)) {
                self.store(at, word)?;
            }
        }
        Ok(())
    }
}

impl MockGuest {
    /// Adds the unmanaged memory to the guest. The NVDIMM is filled with nonzero bytes.
    pub(in crate::linux) fn add_unmanaged(
        &mut self,
        unmanaged: Unmanaged,
    ) -> Result<(), MockError> {
        let old = self.truth.layout.regions();
        let ranges = old.iter().map(|r| (r.start.gpa(), u64::from(r.frames) * FRAME_SIZE));
        let Unmanaged { kept, nvdimm } = unmanaged;
        let new = [&kept, &nvdimm].map(|r| (r.start.gpa(), (r.end.0 - r.start.0) * FRAME_SIZE));
        let ranges: Vec<_> = ranges.chain(new).collect();
        let layout = MemoryLayout::new(&ranges)?;
        self.memory = VecMemory::from_bytes(layout.clone(), self.memory.bytes().to_vec());
        for gfn in nvdimm.start.0..nvdimm.end.0 {
            self.memory.write(Gfn(gfn).gpa(), &gfn.to_le_bytes())?;
        }
        let added = |frames: &Range<Gfn>, role| (frames.start.0..frames.end.0).map(move |_| role);
        self.truth.roles.extend(added(&kept, Role::Offline));
        self.truth.roles.extend(added(&nvdimm, Role::Reserved));
        self.truth.layout = layout;
        (self.kept, self.nvdimm) = (kept, nvdimm);
        Ok(())
    }
}
