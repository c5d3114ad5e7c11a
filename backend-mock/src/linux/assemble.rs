//! Puts a guest together, in the order in which a machine would get there.

use super::boot::{banner, boot};
use super::builder::Knobs;
use super::guest::{MockGuest, Registers};
use super::image::Section;
use super::kernel::Kernel;
use super::space::{Mappings, Space};
use super::tasks::{Group, Tasks};
use super::truth::{FileTruth, KernelTruth, Role, Truth, Users};
use super::vfs::{File, Vfs, encode_device};
use super::vmcoreinfo::TablePlace;
use super::{btf, kallsyms};
use crate::paging::{LeafTruth, Rights, TableFrame};
use crate::{MockError, Rng};
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gva};
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
        // The kernel's own root has a second half too.
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
    Ok(MockGuest::new(kernel.memory, truth, registers, kernel.types))
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

/// What user page tables say of each frame.
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

/// Registers: CPUs run processes in turn; under isolation every other one is stopped in user mode.
fn registers(
    knobs: &Knobs,
    kernel: &Kernel,
    spaces: &[super::truth::SpaceTruth],
    per_cpu: &[u64],
) -> Vec<Registers> {
    let mode = kernel.tables.mode();
    let first = kernel.image.symbol("__per_cpu_start").map_or(0, |s| s.0);
    let one = |(cpu, offset): (usize, &u64)| {
        let space = spaces.get(cpu % spaces.len().max(1));
        let in_user_mode = knobs.isolated && cpu % 2 == 1;
        let root =
            space.map_or(kernel.tables.root(), |s| if in_user_mode { s.user_root } else { s.root });
        // Under isolation the low bits of CR3 carry an address-space number; user mode has bit 11 of it set.
        let number = if in_user_mode { 0x801 + cpu as u64 % 6 } else { 1 + cpu as u64 % 6 };
        let (cr3, cr4) = if knobs.isolated {
            (root.0 | number, mode.cr4() | 1 << 17)
        } else {
            (root.0, mode.cr4())
        };
        let (cr0, efer) = (mode.cr0(), mode.efer());
        let gs_base = Gva(first.wrapping_add(*offset));
        Registers { cr0, cr3, cr4, efer, gs_base, rip: kernel.image.gva }
    };
    per_cpu.iter().enumerate().map(one).collect()
}

impl Kernel {
    fn name_sections(&mut self) {
        let at = |s| self.image.addresses(s);
        let [text, rodata, data, init, bss] = [
            at(Section::Text),
            at(Section::Rodata),
            at(Section::Data),
            at(Section::Init),
            at(Section::Bss),
        ];
        for (name, kind, address) in [
            ("_text", 'T', text.start),
            ("_stext", 'T', text.start),
            ("_etext", 'T', text.end),
            ("__start_rodata", 'R', rodata.start),
            ("__end_rodata", 'R', rodata.end),
            ("_sdata", 'D', data.start),
            ("_edata", 'D', data.end),
            ("__init_begin", 'D', init.start),
            ("__init_end", 'R', init.end),
            ("__bss_start", 'B', bss.start),
            ("__bss_stop", 'B', bss.end),
            ("_end", 'B', bss.end),
        ] {
            self.image.name(name, kind, address.0);
        }
    }

    /// Functions all over the text, with bytes of their own; their names.
    fn write_text(&mut self) -> Result<Vec<String>, MockError> {
        let subsystems = [
            "vfs",
            "tcp",
            "ext4",
            "sched",
            "mm",
            "blk",
            "x86",
            "kvm",
            "net",
            "irq",
            "rcu",
            "drm_atomic_helper",
        ];
        let verbs = [
            "alloc",
            "free",
            "lookup",
            "release",
            "init",
            "read_iter",
            "update",
            "queue",
            "get",
            "put",
            "commit",
        ];
        let nouns = [
            "page",
            "inode",
            "task",
            "skb",
            "bio",
            "entry",
            "range",
            "work",
            "state",
            "dentry_unlocked",
            "node",
        ];
        let bytes = self.image.room(Section::Text);
        let mut functions = Vec::new();
        for (i, subsystem) in subsystems.iter().enumerate() {
            for (j, verb) in verbs.iter().enumerate() {
                for (k, noun) in nouns.iter().enumerate() {
                    // Some names end in what a compiler appends.
                    let suffix = if (i + j + k) % 17 == 0 { ".constprop.0" } else { "" };
                    functions.push(format!("{subsystem}_{verb}_{noun}{suffix}"));
                }
            }
        }
        let share = bytes / (functions.len() as u64 + 1) / 16 * 16;
        for name in &functions {
            let gva = self.image.place(Section::Text, name, share, 16)?;
            let code = self.rng.next_u64().to_le_bytes();
            self.store_bytes(gva.0, &[0xf3, 0x0f, 0x1e, 0xfa])?;
            self.store_bytes(gva.0 + 4, &code)?;
        }
        Ok(functions)
    }

    /// Bytes that look like the beginning of a symbol table or of type information, as real kernels have them too.
    fn write_decoys(&mut self) -> Result<(), MockError> {
        // A table of wide characters, digits among them.
        let wide: Vec<u8> = (0u16..256).flat_map(u16::to_le_bytes).collect();
        let gva = self.image.place(Section::Rodata, "t2_nls_table", wide.len() as u64, 32)?;
        self.store_bytes(gva.0, &wide)?;
        let fake = [
            0x9f, 0xeb, 1, 0, 0x58, 0x4a, 0x2b, 0xff, 0x37, 0x61, 2, 0, 0x93, 0xeb, 1, 0, 0x9c,
            0x4a, 0x2b, 0xff,
        ];
        let gva = self.image.place(Section::Rodata, "aes_sbox_decoy", fake.len() as u64, 4)?;
        self.store_bytes(gva.0, &fake)
    }

    fn write_btf(&mut self, functions: &[String]) -> Result<(Gva, u64), MockError> {
        let bytes = btf::encode(&self.types, self.style, functions);
        let size = bytes.len() as u64;
        let gva = self.image.place(Section::Rodata, "__start_BTF", size, 4)?;
        self.image.name("__stop_BTF", 'R', gva.0 + size);
        self.store_bytes(gva.0, &bytes)?;
        Ok((gva, size))
    }

    /// Writes the symbol table behind everything else in the read-only data.
    fn write_kallsyms(&mut self) -> Result<(TablePlace, u64), MockError> {
        self.image.symbols.sort();
        let at = self.image.place(Section::Rodata, "", 0, 8)?.0;
        let (bytes, parts) =
            kallsyms::encode(&self.image.symbols, self.style.kallsyms(), at, self.image.gva.0);
        let size = bytes.len() as u64;
        self.image.place(Section::Rodata, "", size, 8)?;
        self.store_bytes(at, &bytes)?;
        Ok((TablePlace { at, parts }, size))
    }

    /// File systems, directories, files with their page cache, memory files, block devices.
    fn populate_files(
        &mut self,
        knobs: &Knobs,
        budget: u64,
    ) -> Result<(Vfs, Vec<File>), MockError> {
        let list = self.image.place(Section::Data, "super_blocks", 16, 8)?;
        self.list_init(list.0)?;
        let mut vfs = Vfs::default();
        let rootfs = self.new_file_system(&mut vfs, "rootfs", encode_device(0, 2), "rootfs")?;
        let base = self.mount_on(&mut vfs, rootfs, None)?;
        let ext4 = self.new_file_system(&mut vfs, "ext4", encode_device(254, 1), "vda1")?;
        let root = self.mount_on(&mut vfs, ext4, Some(base))?;
        let mut dirs = Vec::new();
        let usr = self.new_directory(&mut vfs, root, "usr")?;
        let bin = self.new_directory(&mut vfs, usr, "bin")?;
        let lib = self.new_directory(&mut vfs, usr, "lib")?;
        for (parent, name) in
            [(root, "etc"), (lib, "x86_64-linux-gnu"), (root, "var"), (root, "home")]
        {
            dirs.push(self.new_directory(&mut vfs, parent, name)?);
        }
        let deep = dirs.last().copied().unwrap_or(root);
        dirs.push(self.new_directory(
            &mut vfs,
            deep,
            "a directory whose name needs more room than an entry has",
        )?);
        let dev_dir = self.new_directory(&mut vfs, root, "dev")?;
        let run_dir = self.new_directory(&mut vfs, root, "run")?;
        let srv_dir = self.new_directory(&mut vfs, root, "srv")?;
        let devtmpfs =
            self.new_file_system(&mut vfs, "devtmpfs", encode_device(0, 6), "devtmpfs")?;
        let dev = self.mount_on(&mut vfs, devtmpfs, Some(dev_dir))?;
        let shm_dir = self.new_directory(&mut vfs, dev, "shm")?;
        let run_fs = self.new_file_system(&mut vfs, "tmpfs", encode_device(0, 23), "tmpfs")?;
        let run = self.mount_on(&mut vfs, run_fs, Some(run_dir))?;
        let shm_fs = self.new_file_system(&mut vfs, "tmpfs", encode_device(0, 24), "tmpfs")?;
        let shm = self.mount_on(&mut vfs, shm_fs, Some(shm_dir))?;
        let xfs = self.new_file_system(&mut vfs, "xfs", encode_device(254, 16), "vdb")?;
        let srv = self.mount_on(&mut vfs, xfs, Some(srv_dir))?;
        // The same file system once more, at a directory of its own: a bind mount, seen before the first.
        let xfs_root =
            vfs.systems.get(xfs).map(|s| s.root).ok_or(MockError::Knobs("no such file system"))?;
        dirs.push(srv);
        let inner = self.new_directory(&mut vfs, srv, "data")?;
        dirs.push(inner);
        let inner_dentry = vfs.directories.get(inner).map_or(xfs_root, |d| d.dentry);
        let home = vfs.directories.get(deep).map_or(xfs_root, |d| d.dentry);
        self.new_mount(&vfs, xfs, inner_dentry, Some((ext4, home)))?;
        let internal = self.new_file_system(&mut vfs, "tmpfs", encode_device(0, 1), "tmpfs")?;
        let bdev = self.new_file_system(&mut vfs, "bdev", encode_device(0, 3), "bdev")?;
        for kernel_only in [internal, bdev] {
            let root = vfs.systems.get(kernel_only).map_or(xfs_root, |s| s.root);
            self.new_mount(&vfs, kernel_only, root, None)?;
        }

        let mut files = Vec::new();
        for (directory, name) in [
            (bin, "python3.11"),
            (bin, "sqlite3"),
            (bin, "nginx"),
            (lib, "libc.so.6"),
            (lib, "libcrypto.so.3"),
        ] {
            let (mut file, _) = self.new_file(&mut vfs, directory, name)?;
            file.is_program = true;
            let pages = (budget / 250).clamp(8, 400) + self.rng.below(16);
            let folios: Vec<_> = (0..pages).filter(|i| i % 13 != 7).map(|i| (i, 0)).collect();
            self.cache_file(&mut files, file, &folios)?;
        }
        let wanted =
            u64::from(knobs.files.unwrap_or(u32::try_from(30 + budget / 300).unwrap_or(u32::MAX)));
        let average = (budget * 28 / 100 / wanted.max(1)).max(1);
        for number in 0..wanted {
            let directory = dirs.get(self.rng.index(dirs.len())).copied().unwrap_or(root);
            let long =
                if self.rng.one_in(6) { "-with-a-name-that-is-longer-than-most" } else { "" };
            let (file, dentry) =
                self.new_file(&mut vfs, directory, &format!("file{number}{long}.dat"))?;
            let mut file = file;
            if self.rng.one_in(20) {
                let inode = self.load(self.address(file.mapping, "host")?)?;
                let inode = self.object(Gva(inode), "inode")?;
                self.unlink(dentry, inode)?;
                file.path = None;
            }
            let large = file.fs == xfs && knobs.style.large_folios();
            let folios = plan(&mut self.rng, average, large);
            self.cache_file(&mut files, file, &folios)?;
        }
        if knobs.stale_note {
            let (file, _) = self.new_file(&mut vfs, root, "vmcoreinfo.txt")?;
            self.cache_file(&mut files, file, &[(0, 0)])?;
            let stale = "OSRELEASE=5.4.0-stale\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82409000\nNUMBER(phys_base)=0\n";
            let head =
                files.last().and_then(|f: &File| f.folios.get(&0)).map(|f| f.0).unwrap_or_default();
            self.memory.write(head.gpa(), stale.as_bytes())?;
        }
        // A file with pages far from its beginning.
        let (file, _) = self.new_file(&mut vfs, root, "sparse.img")?;
        self.cache_file(&mut files, file, &[(3, 0), (4000, 0), (300_000, 0), (1 << 26, 0)])?;
        for (directory, name) in [(run, "journal"), (shm, "sem.pool"), (shm, "ring")] {
            let (file, _) = self.new_file(&mut vfs, directory, name)?;
            let pages = budget * 8 / 1000 + 1;
            let folios: Vec<_> = (0..pages).map(|i| (i * 5 / 4, 0)).collect();
            self.cache_file(&mut files, file, &folios)?;
        }
        for name in ["memfd:jit", "SYSV0001c0de"] {
            let file = self.new_nameless(&mut vfs, internal, name)?;
            let folios: Vec<_> = (0..budget * 4 / 1000 + 1).map(|i| (i, 0)).collect();
            self.cache_file(&mut files, file, &folios)?;
        }
        for (name, device) in [("vda", encode_device(254, 0)), ("vda1", encode_device(254, 1))] {
            let file = self.new_block_device(&mut vfs, bdev, dev, name, device)?;
            let folios: Vec<_> = (0..budget * 15 / 1000 + 1).map(|i| (i * i / 3 + i, 0)).collect();
            self.cache_file(&mut files, file, &folios)?;
        }
        Ok((vfs, files))
    }

    /// Fills and indexes a file's cache and adds the file to the others.
    fn cache_file(
        &mut self,
        files: &mut Vec<File>,
        mut file: File,
        folios: &[(u64, u32)],
    ) -> Result<(), MockError> {
        let number = u32::try_from(files.len()).unwrap_or(u32::MAX);
        self.fill_cache(&mut file, number, folios)?;
        let end = folios.last().map_or(1, |f| f.0 + (1 << f.1));
        let shadows: Vec<u64> = (0..self.rng.below(4)).map(|_| self.rng.below(end + 8)).collect();
        self.index_cache(&file, &shadows)?;
        files.push(file);
        Ok(())
    }

    fn populate_processes(
        &mut self,
        knobs: &Knobs,
        tasks: &mut Tasks,
        files: &[File],
        budget: u64,
    ) -> Result<Vec<Space>, MockError> {
        let (programs, libraries): (Vec<&File>, Vec<&File>) = files
            .iter()
            .filter(|f| f.is_program)
            .partition(|f| f.path.as_deref().is_some_and(|p| p.starts_with("/usr/bin")));
        let shared = files.iter().find(|f| f.path.as_deref() == Some("/dev/shm/ring"));
        let vdso = self.image.place(Section::Data, "raw_data", 2 * FRAME_SIZE, FRAME_SIZE)?;
        let zero = self.image.symbol("empty_zero_page")?;
        let image_gfn = |gva: Gva| Gfn(gva.0.wrapping_sub(self.image.offset()) / FRAME_SIZE);
        let (vdso, zero) = (image_gfn(vdso), image_gfn(zero));
        let mut mappings = Mappings::new();
        let mut spaces: Vec<Space> = Vec::new();
        let heap = (budget * 12 / 100 / u64::from(knobs.processes)).max(4);
        for number in 0..u64::from(knobs.processes) {
            let mut space = self.new_space(knobs.isolated)?;
            let program =
                programs.get(usize::try_from(number).unwrap_or(0) % programs.len().max(1)).copied();
            let base = 0x5500_0000_0000 + (self.rng.below(1 << 16) << 21);
            let mut top = 0x7f00_0000_0000 + (self.rng.below(1 << 16) << 21);
            let count = &mut mappings;
            if let Some(program) = program {
                let pages = program.folios.keys().max().map_or(0, |p| p + 1);
                self.map_file(&mut space, count, base, (program, 0..pages / 2), Rights::USER_TEXT)?;
                self.map_file(
                    &mut space,
                    count,
                    base + (1 << 30),
                    (program, pages / 2..pages),
                    Rights::USER_READ,
                )?;
            }
            for library in &libraries {
                let pages = library.folios.keys().max().map_or(0, |p| p + 1);
                self.map_file(
                    &mut space,
                    count,
                    top,
                    (library, 0..pages * 2 / 3),
                    Rights::USER_TEXT,
                )?;
                top += (pages * FRAME_SIZE).next_multiple_of(2 << 20);
                self.map_anonymous(&mut space, count, (top, 3), Rights::USER_WRITE)?;
                top += 2 << 20;
            }
            if let Some(ring) = shared.filter(|_| number < 3) {
                self.map_file(
                    &mut space,
                    count,
                    top + (1 << 30),
                    (ring, 0..64),
                    Rights::USER_WRITE,
                )?;
            }
            let heap_at = base + (2 << 30);
            if number == 1 {
                // A child that its parent's memory is still shared with.
                let parent: Vec<_> = spaces
                    .first()
                    .map(|s| s.anonymous.clone())
                    .unwrap_or_default()
                    .into_iter()
                    .collect();
                for (page, gfn) in
                    parent.into_iter().filter(|p| p.0 * FRAME_SIZE >= 0x5500_0000_0000).take(64)
                {
                    self.map_user(&mut space, count, (page * FRAME_SIZE, gfn), Rights::USER_READ)?;
                }
            } else {
                self.map_anonymous(&mut space, count, (heap_at, heap), Rights::USER_WRITE)?;
            }
            if number == 2 {
                let code = Rights { write: true, ..Rights::USER_TEXT };
                self.map_anonymous(&mut space, count, (top + (2 << 30), 8), code)?;
            }
            let stack = 0x7ffc_0000_0000 + self.rng.below(1 << 16) * FRAME_SIZE;
            self.map_anonymous(&mut space, count, (stack, 4), Rights::USER_WRITE)?;
            self.map_user(&mut space, count, (0x7ffe_0000_0000, vdso), Rights::USER_TEXT)?;
            self.map_user(
                &mut space,
                count,
                (0x7ffe_0000_1000, Gfn(vdso.0 + 1)),
                Rights::USER_READ,
            )?;
            self.map_user(&mut space, count, (heap_at + (1 << 30), zero), Rights::USER_READ)?;
            if number == 0 && budget > 6000 {
                self.map_huge(&mut space, heap_at + (3 << 30))?;
            }
            let name =
                program.and_then(|p| p.path.as_deref()?.rsplit('/').next()).unwrap_or("init");
            let at = (spaces.len(), space.mm);
            let leader = self.new_task(tasks, name, Group::Leader, Some(at))?;
            for thread in 0..if number == 0 { 2 } else { 0 } {
                self.new_task(
                    tasks,
                    &format!("{name}-w{thread}"),
                    Group::ThreadOf(leader),
                    Some(at),
                )?;
            }
            spaces.push(space);
        }
        for merged in 0..4u64 {
            let places = [
                (0, 0x6000_0000_0000 + merged * 0x10_0000),
                (spaces.len() - 1, 0x6100_0000_0000 + merged * FRAME_SIZE),
            ];
            self.map_merged(&mut spaces, &mut mappings, &places)?;
        }
        for (gfn, count) in mappings {
            let counted = self.frames.role(gfn).is_some_and(|r| !r.is_reserved());
            if counted {
                self.page_mapped(gfn, count)?;
            }
        }
        Ok(spaces)
    }
}

/// Which pages of a file are cached: about `average`, with holes; folios of several pages when `large`.
fn plan(rng: &mut Rng, average: u64, large: bool) -> Vec<(u64, u32)> {
    let pages = match rng.below(8) {
        0 => 1,
        1 => average * 4,
        _ => 1 + rng.below(average * 3 / 2),
    };
    let mut out = Vec::new();
    let (mut index, mut done) = (if rng.one_in(5) { rng.below(100) } else { 0 }, 0);
    while done < pages {
        if rng.one_in(12) {
            index += 1 + rng.below(70);
        }
        let largest = index.trailing_zeros().min(if rng.one_in(40) { 9 } else { 4 });
        let order =
            if large { u32::try_from(rng.below(u64::from(largest) + 1)).unwrap_or(0) } else { 0 };
        // A folio of two pages does not exist in the page cache: its first tail has no room for what it needs.
        let order = if order == 1 { 0 } else { order };
        out.push((index, order));
        index += 1 << order;
        done += 1 << order;
    }
    out
}
