//! Damage: structures as a hostile or broken guest may have them.
//!
//! Afterwards the truth no longer holds for what was damaged, but introspection must still
//! terminate.

use super::KernelStyle;
use super::guest::MockGuest;
use super::truth::FileKind;
use crate::ram::{read_u64, write_uint};
use crate::{MockError, Rng};
use kaleidoscope_core::addr::{Gfn, Gpa, Gva};
use kaleidoscope_core::memory::MemoryError;

/// An unmapped canonical kernel address.
const BAD_POINTER: u64 = 0xffff_f000_dead_bee8;

/// One kind of damage, at one location.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Damage {
    /// The list of tasks never returns to its head: the second task follows itself.
    TaskCycle,
    /// The list of tasks leads out of memory.
    TaskWild,
    /// A process's list of threads never returns to its head.
    ThreadCycle,
    /// A task's pointer to its address space is invalid.
    AddressSpaceWild,
    /// A module follows itself.
    ModuleCycle,
    /// A directory is its own grandparent.
    DirectoryCycle,
    /// A file's name has a length of 2^32 - 1 bytes.
    NameLength,
    /// A file's pointer to its name is invalid.
    NameWild,
    /// A mount is its own grandparent.
    MountCycle,
    /// A file system's list of mounts never ends.
    MountListCycle,
    /// A mapping's pointer to its inode is invalid.
    HostWild,
    /// A page's pointer to its mapping is invalid.
    MappingWild,
    /// A slab's pointer to its cache is invalid.
    SlabCacheWild,
    /// A slab cache's pointer to its name is invalid.
    CacheNameWild,
    /// A free block has an impossible order.
    BlockOrder,
    /// A free block's order covers allocated frames after it.
    BlockTooLarge,
    /// The list of free blocks leads out of memory.
    BlockWild,
    /// A tail of a compound page points to itself as its head.
    TailOfItself,
    /// A tail's pointer to its head is invalid.
    TailWild,
    /// A compound page's head is marked as a tail of its own tail.
    TailCycle,
    /// The number and size of per-CPU units are absurd.
    PerCpuUnits,
    /// The symbol table has a count of 2^32 - 1 symbols.
    SymbolCount,
    /// All names in the symbol table have the maximum length.
    SymbolLengths,
    /// The type information has a length past the end of memory.
    TypeLengths,
    /// All type numbers and names in the type information point past its end.
    TypeReferences,
    /// Numbers in VMCOREINFO have the maximum value.
    NoteNumbers,
    /// VMCOREINFO fills its page without a terminator.
    NoteEndless,
    /// A process's root table points to itself.
    TableLoop,
    /// A process's root table points to tables outside RAM.
    TableWild,
    /// Every entry of a process's root table points to the same table.
    TableBomb,
}

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 30] = [
        Self::TaskCycle,
        Self::TaskWild,
        Self::ThreadCycle,
        Self::AddressSpaceWild,
        Self::ModuleCycle,
        Self::DirectoryCycle,
        Self::NameLength,
        Self::NameWild,
        Self::MountCycle,
        Self::MountListCycle,
        Self::HostWild,
        Self::MappingWild,
        Self::SlabCacheWild,
        Self::CacheNameWild,
        Self::BlockOrder,
        Self::BlockTooLarge,
        Self::BlockWild,
        Self::TailOfItself,
        Self::TailWild,
        Self::TailCycle,
        Self::PerCpuUnits,
        Self::SymbolCount,
        Self::SymbolLengths,
        Self::TypeLengths,
        Self::TypeReferences,
        Self::NoteNumbers,
        Self::NoteEndless,
        Self::TableLoop,
        Self::TableWild,
        Self::TableBomb,
    ];
}

/// A part of the guest that random damage can be confined to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Area {
    /// All of RAM.
    Everything,
    /// The frame table.
    FrameTable,
    /// Page tables, the kernel's and processes'.
    PageTables,
    /// Slab objects.
    Slabs,
    /// The kernel image's data.
    KernelData,
    /// The symbol table.
    Kallsyms,
    /// The type information.
    Btf,
    /// The VMCOREINFO page.
    Vmcoreinfo,
}

impl Area {
    /// Every area.
    pub const ALL: [Self; 8] = [
        Self::Everything,
        Self::FrameTable,
        Self::PageTables,
        Self::Slabs,
        Self::KernelData,
        Self::Kallsyms,
        Self::Btf,
        Self::Vmcoreinfo,
    ];
}

impl MockGuest {
    /// Flips `count` random bits anywhere in RAM.
    ///
    /// # Errors
    /// [`MockError::Memory`], which does not occur on a guest as built.
    pub fn flip_bits(&mut self, seed: u64, count: u32) -> Result<(), MockError> {
        self.flip_bits_in(Area::Everything, seed, count)
    }

    /// Flips `count` random bits in one area of the guest.
    ///
    /// # Errors
    /// [`MockError::Memory`], which does not occur on a guest as built.
    pub fn flip_bits_in(&mut self, area: Area, seed: u64, count: u32) -> Result<(), MockError> {
        let ranges = self.ranges(area);
        let total: u64 = ranges.iter().map(|r| r.1).sum();
        let mut rng = Rng::new(seed);
        for _ in 0..count {
            let mut at = rng.below(total);
            let found = ranges.iter().find_map(|&(start, bytes)| {
                let inside = at < bytes;
                if !inside {
                    at -= bytes;
                }
                inside.then_some(Gpa(start.0 + at))
            });
            let Some(gpa) = found else { continue };
            let byte = {
                let mut byte = [0];
                kaleidoscope_core::memory::GuestMemory::read(&self.memory, gpa, &mut byte)?;
                byte[0] ^ 1 << rng.below(8)
            };
            self.memory.write(gpa, &[byte])?;
        }
        Ok(())
    }

    /// Start addresses and sizes in bytes of the runs that make up an area.
    fn ranges(&self, area: Area) -> Vec<(Gpa, u64)> {
        let kernel = &self.truth.kernel;
        let in_image =
            |(gva, bytes): (Gva, u64)| vec![(Gpa(gva.0.wrapping_sub(kernel.image_offset)), bytes)];
        let frames = |wanted: &dyn Fn(super::Role) -> bool| {
            let roles = self.truth.layout.iter().zip(&self.truth.roles);
            roles
                .filter(|(_, role)| wanted(**role))
                .map(|((_, gfn), _)| (gfn.gpa(), 4096))
                .collect()
        };
        match area {
            Area::Everything => frames(&|_| true),
            Area::FrameTable => frames(&|r| r == super::Role::FrameTable),
            Area::Slabs => frames(&|r| matches!(r, super::Role::Slab { .. })),
            Area::KernelData => frames(&|r| r == super::Role::KernelData),
            Area::PageTables => {
                let spaces = self.truth.spaces.iter().flat_map(|s| &s.tables);
                kernel.tables.iter().chain(spaces).map(|t| (t.gfn.gpa(), 4096)).collect()
            }
            Area::Kallsyms => in_image(kernel.kallsyms),
            Area::Btf => in_image(kernel.btf),
            Area::Vmcoreinfo => vec![(kernel.vmcoreinfo, 4096)],
        }
    }

    /// Applies one kind of damage.
    ///
    /// # Errors
    /// [`MockError`] when the guest has no structure to damage in this way.
    pub fn damage(&mut self, damage: Damage) -> Result<(), MockError> {
        let v7_2 = self.truth.kernel.style >= KernelStyle::V7_2;
        match damage {
            Damage::TaskCycle => {
                let second =
                    self.load(self.variable_member("init_task", "task_struct", "tasks")?)?;
                self.store(second, second)
            }
            Damage::TaskWild => {
                let second =
                    self.load(self.variable_member("init_task", "task_struct", "tasks")?)?;
                self.store(second, BAD_POINTER)
            }
            Damage::ThreadCycle => {
                let task = self.process()?;
                let node = task + self.member_offset("task_struct", "thread_node")?;
                let next = self.load(node)?;
                self.store(next, next)
            }
            Damage::AddressSpaceWild => {
                let task = self.process()?;
                self.store(task + self.member_offset("task_struct", "mm")?, BAD_POINTER)
            }
            Damage::ModuleCycle => {
                let first = self.load(self.symbol_address("modules")?)?;
                self.store(first, first)
            }
            Damage::DirectoryCycle => {
                let parent = self.member_offset("dentry", "d_parent")?;
                let directory = self.load(self.dentry()? + parent)?;
                let above = self.load(directory + parent)?;
                self.store(above + parent, directory)
            }
            Damage::NameLength => {
                let name = self.name_address()?;
                self.store_u32(name + self.member_offset("qstr", "len")?, u32::MAX)
            }
            Damage::NameWild => {
                let name = self.name_address()?;
                self.store(name + self.member_offset("qstr", "name")?, BAD_POINTER)
            }
            Damage::MountCycle => {
                let parent = self.member_offset("mount", "mnt_parent")?;
                let mount = self.mount()?;
                let above = self.load(mount + parent)?;
                self.store(above + parent, mount)
            }
            Damage::MountListCycle => {
                let mount = self.mount()?;
                let next = if v7_2 { "mnt_next_for_sb" } else { "mnt_instance" };
                let address = mount + self.member_offset("mount", next)?;
                let root = mount + self.member_offset("mount", "mnt.mnt_root")?;
                // The mount itself is made invalid, and followed by itself.
                self.store(root, BAD_POINTER)?;
                self.store(address, if v7_2 { mount } else { address })
            }
            Damage::HostWild => {
                let mapping = self.file()?.0;
                self.store(mapping.0 + self.member_offset("address_space", "host")?, BAD_POINTER)
            }
            Damage::MappingWild => {
                let gfn = self.file()?.1;
                self.store(self.record(gfn) + self.member_offset("page", "mapping")?, BAD_POINTER)
            }
            Damage::SlabCacheWild => {
                let slab = self.first_slab()?;
                self.store(slab, BAD_POINTER)
            }
            Damage::CacheNameWild => {
                let cache = self.load(self.first_slab()?)?;
                self.store(cache + self.member_offset("kmem_cache", "name")?, BAD_POINTER)
            }
            Damage::BlockOrder => {
                let block = self.free_block(0)?;
                self.store(self.record(block) + self.member_offset("page", "private")?, u64::MAX)
            }
            Damage::BlockTooLarge => {
                let block = self.free_block(0)?;
                self.store(self.record(block) + self.member_offset("page", "private")?, 10)
            }
            Damage::BlockWild => {
                let block = self.free_block(0)?;
                self.store(self.record(block) + self.member_offset("page", "lru")?, BAD_POINTER)
            }
            Damage::TailOfItself => {
                let tail = self.compound_head()?.0 + 1;
                let link = self.record(Gfn(tail)) | 1;
                self.store(self.record(Gfn(tail)) + 8, link)
            }
            Damage::TailWild => {
                let tail = self.compound_head()?.0 + 1;
                self.store(self.record(Gfn(tail)) + 8, BAD_POINTER | 1)
            }
            Damage::TailCycle => {
                let head = self.compound_head()?;
                let link = self.record(Gfn(head.0 + 1)) | 1;
                self.store(self.record(head) + 8, link)
            }
            Damage::PerCpuUnits => {
                let address = self.symbol_address("pcpu_nr_units")?;
                self.store_u32(address, u32::MAX)?;
                let address = self.symbol_address("pcpu_unit_size")?;
                self.store_u32(address, u32::MAX)
            }
            Damage::SymbolCount => self.store_in_table(self.truth.kernel.kallsyms, 0, u32::MAX),
            Damage::SymbolLengths => {
                let (gva, bytes) = self.truth.kernel.kallsyms;
                self.fill(gva, bytes / 3, 0xff)
            }
            Damage::TypeLengths => {
                let btf = self.truth.kernel.btf;
                [8, 12, 16, 20]
                    .into_iter()
                    .try_for_each(|at| self.store_in_table(btf, at, 0xffff_fff0))
            }
            Damage::TypeReferences => {
                let (gva, bytes) = self.truth.kernel.btf;
                self.fill(Gva(gva.0 + 24), bytes / 2, 0xfe)
            }
            Damage::NoteNumbers => self.rewrite_note(|text| {
                text.lines()
                    .map(|line| match line.split_once('=') {
                        Some((name, _)) if name.starts_with("SYMBOL") => {
                            format!("{name}=ffffffffffffffff\n")
                        }
                        Some((name, _)) if name.contains('(') => {
                            format!("{name}=18446744073709551615\n")
                        }
                        _ => format!("{line}\n"),
                    })
                    .collect()
            }),
            Damage::NoteEndless => self.rewrite_note(|text| text.replace('\n', " ").repeat(8)),
            Damage::TableLoop => {
                let root = self.root()?;
                write_uint(&mut self.memory, root, 8, root.0 | 7)
            }
            Damage::TableWild => {
                let root = self.root()?;
                write_uint(&mut self.memory, root, 8, 0x000f_ffff_0000_0000 | 7)
            }
            Damage::TableBomb => {
                let root = self.root()?;
                (0..256).try_for_each(|i| {
                    write_uint(&mut self.memory, Gpa(root.0 + 8 * i), 8, root.0 | 7)
                })
            }
        }
    }

    fn translate(&self, gva: u64) -> Result<Gpa, MockError> {
        let not_mapped = MockError::Memory(MemoryError::NotRam { gpa: Gpa(gva), len: 8 });
        self.physical(Gva(gva)).ok_or(not_mapped)
    }

    fn load(&self, gva: u64) -> Result<u64, MockError> {
        read_u64(&self.memory, self.translate(gva)?)
    }

    fn store(&mut self, gva: u64, value: u64) -> Result<(), MockError> {
        let gpa = self.translate(gva)?;
        write_uint(&mut self.memory, gpa, 8, value)
    }

    fn store_u32(&mut self, gva: u64, value: u32) -> Result<(), MockError> {
        let gpa = self.translate(gva)?;
        write_uint(&mut self.memory, gpa, 4, value.into())
    }

    fn store_in_table(&mut self, table: (Gva, u64), at: u64, value: u32) -> Result<(), MockError> {
        self.store_u32(table.0.0 + at, value)
    }

    /// Fills part of a table in the image, which is physically contiguous.
    fn fill(&mut self, gva: Gva, bytes: u64, value: u8) -> Result<(), MockError> {
        let gpa = self.translate(gva.0)?;
        self.memory.write(gpa, &vec![value; usize::try_from(bytes).unwrap_or(0)])?;
        Ok(())
    }

    fn rewrite_note(&mut self, change: impl Fn(&str) -> String) -> Result<(), MockError> {
        let gpa = self.truth.kernel.vmcoreinfo;
        let mut page = vec![0; 4096];
        kaleidoscope_core::memory::GuestMemory::read(&self.memory, gpa, &mut page)?;
        let text = String::from_utf8_lossy(&page).trim_end_matches('\0').to_owned();
        let mut changed = change(&text).into_bytes();
        changed.resize(4096, 0);
        self.memory.write(gpa, &changed)?;
        Ok(())
    }

    fn member_offset(&self, structure: &str, path: &str) -> Result<u64, MockError> {
        let missing = || MockError::NoSuchType { name: format!("{structure}.{path}") };
        self.offset(structure, path).ok_or_else(missing)
    }

    fn symbol_address(&self, name: &str) -> Result<u64, MockError> {
        self.symbol(name)
            .map(|s| s.0)
            .ok_or_else(|| MockError::NoSuchType { name: name.to_owned() })
    }

    fn variable_member(&self, symbol: &str, structure: &str, path: &str) -> Result<u64, MockError> {
        Ok(self.symbol_address(symbol)? + self.member_offset(structure, path)?)
    }

    /// The last task of the list, which is a process.
    fn process(&self) -> Result<u64, MockError> {
        let tasks = self.member_offset("task_struct", "tasks")?;
        Ok(self.load(self.symbol_address("init_task")? + tasks + 8)? - tasks)
    }

    fn root(&self) -> Result<Gpa, MockError> {
        self.truth.spaces.first().map(|s| s.root).ok_or(MockError::Knobs("no process"))
    }

    /// Mapping and first frame of a file at least two directories deep.
    fn file(&self) -> Result<(Gva, Gfn), MockError> {
        let deep = |f: &&super::FileTruth| {
            f.kind == FileKind::Regular
                && f.path.as_ref().is_some_and(|p| p.matches('/').count() > 2)
        };
        let found = self.truth.files.iter().find(deep);
        let found = found.and_then(|f| Some((f.mapping, f.folios.values().next()?.0)));
        found.ok_or(MockError::Knobs("no file"))
    }

    fn dentry(&self) -> Result<u64, MockError> {
        let inode = self.load(self.file()?.0.0 + self.member_offset("address_space", "host")?)?;
        let alias = self.load(inode + self.member_offset("inode", "i_dentry")?)?;
        let old = self.truth.kernel.style < KernelStyle::V7_2;
        Ok(alias - self.member_offset("dentry", if old { "d_u.d_alias" } else { "d_alias" })?)
    }

    fn name_address(&self) -> Result<u64, MockError> {
        let old = self.truth.kernel.style < KernelStyle::V7_2;
        Ok(self.dentry()?
            + self.member_offset("dentry", if old { "d_name" } else { "__d_name" })?)
    }

    /// A mount of the file's file system.
    fn mount(&self) -> Result<u64, MockError> {
        let inode = self.load(self.file()?.0.0 + self.member_offset("address_space", "host")?)?;
        let super_block = self.load(inode + self.member_offset("inode", "i_sb")?)?;
        let first = self.load(super_block + self.member_offset("super_block", "s_mounts")?)?;
        let old = self.truth.kernel.style < KernelStyle::V7_2;
        Ok(if old { first - self.member_offset("mount", "mnt_instance")? } else { first })
    }

    /// Address of a frame's `struct page`.
    fn record(&self, gfn: Gfn) -> u64 {
        self.truth.kernel.vmemmap.0 + gfn.0 * 64
    }

    /// Address of a slab's pointer to its cache.
    fn first_slab(&self) -> Result<u64, MockError> {
        let is_slab = |r: &super::Role| matches!(r, super::Role::Slab { .. });
        let mut heads = self.truth.layout.iter().zip(&self.truth.roles).filter(|(_, r)| is_slab(r));
        let head = heads.next().map(|((_, gfn), _)| gfn).ok_or(MockError::Knobs("no slab"))?;
        let structure = if self.truth.kernel.style == KernelStyle::V5_10 { "page" } else { "slab" };
        Ok(self.record(head) + self.member_offset(structure, "slab_cache")?)
    }

    fn free_block(&self, order: u32) -> Result<Gfn, MockError> {
        let found = self.truth.free_blocks.iter().find(|b| *b.1 == order);
        found.map(|b| *b.0).ok_or(MockError::Knobs("no free block of this order"))
    }

    /// Head of a compound page.
    fn compound_head(&self) -> Result<Gfn, MockError> {
        let large = |r: &super::Role| *r == super::Role::LargeKmalloc;
        let mut heads = self.truth.layout.iter().zip(&self.truth.roles).filter(|(_, r)| large(r));
        heads.next().map(|((_, gfn), _)| gfn).ok_or(MockError::Knobs("no compound page"))
    }
}
