//! Builds a guest in the order in which a real machine boots and runs.

use super::boot::{banner, boot};
use super::builder::Knobs;
use super::guest::MockGuest;
use super::image::Section;
use super::kernel::Kernel;
use super::memory::virtio_mem::Unmanaged;
use super::processes::tasks::{Group, Tasks};
use super::truth::{FileTruth, KernelTruth, Role, Truth, Users};
use super::vfs::{File, Vfs};
use crate::MockError;
use crate::paging::{LeafTruth, TableFrame};
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gva};
use kaleidoscope_core::registers::VcpuRegisters;
use std::collections::{BTreeMap, BTreeSet};

/// Modules of every guest.
const MODULES: [&str; 3] = ["virtio_net", "xfs", "crc32c_intel"];

/// Kernel threads of every guest.
const KERNEL_THREADS: [&str; 4] = ["kthreadd", "ksoftirqd/0", "kworker/0:0H", "kswapd0"];

/// Builds a guest.
pub(super) fn assemble(knobs: &Knobs) -> Result<MockGuest, MockError> {
    let (mut kernel, mut per_cpu, node) = boot(knobs)?;
    kernel.name_sections();
    let functions = kernel.write_text()?;
    kernel.write_decoys()?;
    let banner_text = banner(knobs.style);
    let gva =
        kernel.image.place(Section::Rodata, "linux_banner", banner_text.len() as u64 + 1, 32)?;
    kernel.store_bytes(gva.0, banner_text.as_bytes())?;
    let kept_frames = knobs.kept.map(|kept| kept / FRAME_SIZE);
    let unmanaged = kept_frames.map(|kept| Unmanaged::behind(kernel.frames.layout(), kept));
    if let Some(unmanaged) = &unmanaged {
        kernel.resources(unmanaged)?;
    }
    let btf = kernel.write_btf(&functions)?;
    kernel.vmcoreinfo_variables()?;
    let zones = kernel.zones(node, &mut per_cpu)?;
    let budget = u64::from(kernel.frames.left());

    let mut tasks = Tasks::default();
    kernel.first_task(&mut tasks)?;
    kernel.load_modules(&MODULES)?;
    kernel.map_cpu_entries(&per_cpu)?;
    for name in KERNEL_THREADS {
        kernel.new_task(&mut tasks, name, Group::Leader, None)?;
    }
    kernel.hugetlb_pool(if budget > 6000 { knobs.hugetlb_pages } else { 0 }, None)?;
    let (vfs, files) = kernel.populate_files(knobs, budget)?;
    let spaces = kernel.populate_processes(knobs, &mut tasks, &files, budget)?;

    kernel.filler_slabs(budget * 3 / 100)?;
    kernel.kernel_buffers(budget * 2 / 100)?;
    kernel.large_objects(budget / 1000 + 1)?;
    for _ in 0..budget / 1000 {
        let frames = 1 + kernel.rng.below(12);
        kernel.vmalloc(frames, FRAME_SIZE, Role::Vmalloc)?;
    }
    for _ in 0..budget / 500 {
        kernel.swap_cache_page()?;
    }
    if knobs.balloon {
        kernel.balloon(budget * 2 / 100)?;
    }
    kernel.kernel_table_records()?;
    let mut space_truths = Vec::new();
    for space in &spaces {
        space_truths.push(kernel.finish_space(space)?);
    }
    let kallsyms = kernel.write_kallsyms()?;
    let note = kernel.vmcoreinfo(knobs, kallsyms.0)?;
    let free_blocks = kernel.give_back(&zones, &per_cpu)?;

    let mut tables = kernel.tables.table_frames();
    if knobs.isolated {
        // The kernel's own root also has a second half.
        let top = kernel.tables.mode().levels();
        tables.push(TableFrame { level: top, gfn: Gfn(kernel.tables.root().gfn().0 + 1) });
    }
    let image = &kernel.image;
    let symbols = image.symbols.iter().map(|s| (s.name.clone(), Gva(s.address))).collect();
    let kernel_truth = KernelTruth {
        style: knobs.style,
        release: knobs.style.release().to_owned(),
        banner: banner_text,
        root: kernel.tables.root(),
        mode: kernel.tables.mode(),
        image_offset: image.offset(),
        text: image.addresses(Section::Text),
        rodata: image.addresses(Section::Rodata),
        page_offset: Gva(kernel.bases.page_offset),
        vmalloc: Gva(kernel.bases.vmalloc),
        vmemmap: Gva(kernel.bases.vmemmap),
        vmcoreinfo: note,
        btf,
        kallsyms: (Gva(kallsyms.0.at), kallsyms.1),
        symbols,
        modules: MODULES.map(str::to_owned).to_vec(),
        leaves: kernel.tables.leaves().collect(),
        tables,
    };
    let registers = registers(knobs, &kernel, &space_truths, &per_cpu.offsets);
    let users = users(space_truths.iter().map(|s| s.leaves.as_slice()));
    let truth = Truth {
        layout: kernel.frames.layout().clone(),
        roles: kernel.frames.into_roles(),
        kernel: kernel_truth,
        files: files.into_iter().map(|f| file_truth(f, &vfs)).collect(),
        caches: kernel.slabs.names,
        tasks: tasks.truth,
        spaces: space_truths,
        active: kernel.active,
        referenced: kernel.referenced,
        free_blocks,
        users,
        per_cpu_units: per_cpu.units,
    };
    let mut guest = MockGuest::new(kernel.memory, truth, registers, kernel.types);
    if let Some(encryption) = knobs.encryption {
        guest.encrypt(encryption)?;
    }
    if knobs.prot_none {
        guest.revoke(knobs.encryption)?;
    }
    if let Some(unmanaged) = unmanaged {
        guest.add_unmanaged(unmanaged)?;
    }
    Ok(guest)
}

fn file_truth(file: File, vfs: &Vfs) -> FileTruth {
    let system = vfs.systems.get(file.fs);
    FileTruth {
        kind: file.kind,
        fs: system.map(|s| s.ty.to_owned()).unwrap_or_default(),
        device: system.map_or(0, |s| s.device),
        inode: file.inode,
        path: file.path,
        mapping: file.mapping.gva,
        folios: file.folios,
    }
}

/// Summarizes how user page tables map each frame.
fn users<'a>(spaces: impl Iterator<Item = &'a [LeafTruth]>) -> BTreeMap<Gfn, Users> {
    let mut out: BTreeMap<Gfn, Users> = BTreeMap::new();
    for leaves in spaces {
        let mut seen = BTreeSet::new();
        for leaf in leaves {
            for i in 0..leaf.size.bytes() / FRAME_SIZE {
                let gfn = Gfn(leaf.gpa.gfn().0 + i);
                let users = out.entry(gfn).or_default();
                users.spaces += u32::from(seen.insert(gfn));
                users.exec |= leaf.rights.exec;
                users.write |= leaf.rights.write;
                users.accessed |= leaf.accessed;
                users.dirty |= leaf.dirty;
            }
        }
    }
    out
}

/// Registers of the CPUs, which run processes in turn. With page-table isolation, every other CPU
/// is stopped in user mode.
fn registers(
    knobs: &Knobs,
    kernel: &Kernel,
    spaces: &[super::truth::SpaceTruth],
    per_cpu: &[u64],
) -> Vec<VcpuRegisters> {
    let mode = kernel.tables.mode();
    let first = kernel.image.symbol("__per_cpu_start").map_or(0, |s| s.0);
    let one = |(cpu, offset): (usize, &u64)| {
        let space = spaces.get(cpu % spaces.len().max(1));
        let in_user_mode = knobs.isolated && cpu % 2 == 1;
        let root =
            space.map_or(kernel.tables.root(), |s| if in_user_mode { s.user_root } else { s.root });
        // With page-table isolation, the low bits of CR3 hold a PCID; user mode has its bit 11 set.
        let number = if in_user_mode { 0x801 + cpu as u64 % 6 } else { 1 + cpu as u64 % 6 };
        let (cr3, cr4) = if knobs.isolated {
            (root.0 | number, mode.cr4() | 1 << 17)
        } else {
            (root.0, mode.cr4())
        };
        VcpuRegisters {
            cpu: u32::try_from(cpu).unwrap_or(u32::MAX),
            rip: kernel.image.gva.0,
            cr0: Some(mode.cr0()),
            cr3: Some(cr3),
            cr4: Some(cr4),
            efer: Some(mode.efer()),
            gs_base: Some(first.wrapping_add(*offset)),
            ..VcpuRegisters::default()
        }
    };
    per_cpu.iter().enumerate().map(one).collect()
}
