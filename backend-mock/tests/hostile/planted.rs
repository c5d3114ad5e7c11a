//! Traps, each planted where one part of the introspection reads.

use crate::target::{DamagedResult, Target};
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gpa, Gva};
use kaleidoscope_core::memory::{GuestMemory, VecMemory};
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest, Role};

/// Entry bits: present, writable, user, accessed, dirty.
const ENTRY: u64 = 0x67;

/// Page-size bit, which makes an upper-level entry map a large page.
const LARGE: u64 = 0x80;

/// A guest and the changes made to its memory.
struct TargetGuest<'g> {
    guest: &'g MockGuest,
    memory: VecMemory,
}

impl TargetGuest<'_> {
    /// Offset of the first of several member names that this kernel's structure has.
    fn offset(&self, structure: &str, members: &[&str]) -> u64 {
        let mut found = members.iter().filter_map(|m| self.guest.offset(structure, m));
        found.next().unwrap_or_else(|| panic!("{structure} has none of {members:?}"))
    }

    fn load(&self, gva: Gva) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(self.guest.physical(gva).unwrap(), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn store(&mut self, gva: Gva, value: u64) {
        let gpa = self.guest.physical(gva).unwrap();
        self.put(gpa, value);
    }

    fn put(&mut self, gpa: Gpa, value: u64) {
        self.memory.write(gpa, &value.to_le_bytes()).unwrap();
    }

    /// Writes entries of a page table.
    fn fill(&mut self, table: Gfn, entries: std::ops::Range<u64>, entry: impl Fn(u64) -> u64) {
        for index in entries {
            self.put(Gpa(table.gpa().0 + index * 8), entry(index));
        }
    }

    fn symbol(&self, name: &str) -> Gva {
        self.guest.symbol(name).unwrap()
    }

    /// Direct-map address of a frame.
    fn direct(&self, gfn: Gfn) -> u64 {
        self.guest.truth.kernel.page_offset.0 + gfn.gpa().0
    }

    /// All frames whose role matches.
    fn frames(&self, wanted: impl Fn(Role) -> bool) -> Vec<Gfn> {
        let truth = &self.guest.truth;
        let frames = truth.layout().iter().zip(truth.roles());
        frames.filter(|(_, role)| wanted(**role)).map(|((_, gfn), _)| gfn).collect()
    }

    fn all_frames(&self) -> Vec<Gfn> {
        self.frames(|_| true)
    }

    /// Address of a frame's `struct page`.
    fn record(&self, gfn: Gfn) -> Gva {
        Gva(self.guest.truth.kernel.vmemmap.0 + gfn.0 * 64)
    }

    /// Writes members of a frame's `struct page`, given as `(alternative names, value)`.
    fn set_record(&mut self, gfn: Gfn, words: &[(&[&str], u64)]) {
        let record = self.record(gfn);
        if self.guest.physical(record).is_none() {
            return;
        }
        for offset in (0..64).step_by(8) {
            self.store(Gva(record.0 + offset), 0);
        }
        for (members, value) in words {
            let at = self.offset("page", members);
            self.store(Gva(record.0 + at), *value);
        }
    }

    /// Whether a frame holds the frame table or tables that map it; traps must not touch these.
    fn is_table(&self, gfn: Gfn) -> bool {
        let kept = [Role::FrameTable, Role::KernelText, Role::KernelRodata, Role::KernelData];
        let role = self.guest.truth.role(gfn).unwrap();
        kept.contains(&role) || matches!(role, Role::BootTable { .. } | Role::PageTable { .. })
    }

    /// Addresses of the directory entries of all named files.
    fn dentries(&self) -> Vec<Gva> {
        let host = self.offset("address_space", &["host"]);
        let aliases = self.offset("inode", &["i_dentry"]);
        let alias = self.offset("dentry", &["d_u.d_alias", "d_alias"]);
        let files = self.guest.truth.files.iter().filter(|f| f.path.is_some());
        let inodes = files.map(|f| Gva(self.load(Gva(f.mapping.0 + host))));
        let links = inodes.map(|inode| self.load(Gva(inode.0 + aliases))).filter(|&link| link != 0);
        links.map(|link| Gva(link - alias)).collect()
    }
}

/// Plants a trap in guests of every style and runs introspection on them. If `says` is given, a
/// note or the error must contain it, which proves that the trap was reached.
fn check_trap(
    says: &str,
    builder: impl Fn(GuestBuilder) -> GuestBuilder,
    trap: impl Fn(&mut TargetGuest<'_>),
) {
    for style in KernelStyle::ALL {
        let guest = builder(GuestBuilder::new(style).seed(9).ram_bytes(32 << 20)).build().unwrap();
        let target = Target::of(&format!("{style:?}"), &guest);
        let mut guest = TargetGuest { guest: &guest, memory: guest.memory.clone() };
        trap(&mut guest);
        let DamagedResult { cost, notes } = target.color_damaged("trap", &guest.memory, true);
        println!("{style:?}: {cost:?}, {notes:?}");
        let is_said = says.is_empty() || notes.iter().any(|note| note.contains(says));
        assert!(is_said, "{style:?}: nothing says {says:?} in {notes:?}");
    }
}

fn leader(v: &TargetGuest<'_>) -> (Gva, u64) {
    let tasks = v.offset("task_struct", &["tasks"]);
    (Gva(v.load(Gva(v.symbol("init_task").0 + tasks)) - tasks), tasks)
}

#[test]
fn a_thread_that_follows_itself() {
    check_trap(
        "tasks is broken",
        |b| b,
        |v| {
            let node = v.offset("task_struct", &["thread_node"]);
            for first in [v.symbol("init_task"), leader(v).0] {
                v.store(Gva(first.0 + node), first.0 + node);
            }
        },
    );
}

#[test]
fn a_process_list_that_never_returns() {
    check_trap(
        "tasks is broken",
        |b| b,
        |v| {
            let (first, tasks) = leader(v);
            let second = v.load(Gva(first.0 + tasks));
            v.store(Gva(second), first.0 + tasks);
        },
    );
}

/// A task list through all of memory, of fake tasks whose names are not text.
#[test]
fn a_process_list_through_all_of_memory() {
    check_trap(
        "tasks is broken",
        |b| b.ram_bytes(64 << 20),
        |v| {
            let (first, tasks) = leader(v);
            let comm = v.offset("task_struct", &["comm"]);
            let mm = v.offset("task_struct", &["mm"]);
            let real_mm = v.load(Gva(first.0 + mm));
            let free = v.frames(|role| matches!(role, Role::Free { .. }));
            let mut link = Gva(first.0 + tasks);
            let size = (tasks.max(comm).max(mm) + 64).next_multiple_of(64);
            for &gfn in &free {
                for at in (0..FRAME_SIZE.saturating_sub(size)).step_by(64) {
                    let task = v.direct(gfn) + at;
                    v.store(Gva(task + comm), u64::MAX);
                    v.store(Gva(task + comm + 8), u64::MAX);
                    v.store(Gva(task + mm), real_mm);
                    v.store(link, task + tasks);
                    link = Gva(task + tasks);
                }
            }
        },
    );
}

#[test]
fn directories_in_a_circle() {
    check_trap(
        "",
        |b| b,
        |v| {
            let parent = v.offset("dentry", &["d_parent"]);
            let dentries = v.dentries();
            assert!(dentries.len() > 3);
            for (at, dentry) in dentries.iter().enumerate() {
                v.store(Gva(dentry.0 + parent), dentries[(at + 1) % dentries.len()].0);
            }
        },
    );
}

#[test]
fn mounts_in_a_circle() {
    check_trap(
        "",
        |b| b,
        |v| {
            let host = v.offset("address_space", &["host"]);
            let inode_super = v.offset("inode", &["i_sb"]);
            let mounts = v.offset("super_block", &["s_mounts"]);
            let parent = v.offset("mount", &["mnt_parent"]);
            let next = v.offset("mount", &["mnt_next_for_sb", "mnt_instance"]);
            let inner = v.guest.offset("mount", "mnt_next_for_sb").map_or(next, |_| 0);
            for file in v.guest.truth.files.clone() {
                let inode = v.load(Gva(file.mapping.0 + host));
                let head = Gva(v.load(Gva(inode + inode_super)) + mounts);
                let mount = v.load(head).wrapping_sub(inner);
                if v.load(head) == 0 || v.load(head) == head.0 {
                    continue;
                }
                // A mount that follows itself, and is the parent of its parent.
                v.store(Gva(mount + next), mount + inner);
                let above = v.load(Gva(mount + parent));
                v.store(Gva(above + parent), mount);
            }
        },
    );
}

/// Every frame belongs to a file of its own. Each path has 200 directories of 255 bytes, shared
/// with no other file.
#[test]
fn a_path_for_every_frame() {
    check_trap(
        "names take too much",
        |b| b.ram_bytes(64 << 20),
        |v| {
            let fields = [
                v.offset("dentry", &["d_parent"]),
                v.offset("dentry", &["d_name", "__d_name"]) + v.offset("qstr", &["name"]),
                v.offset("dentry", &["d_name", "__d_name"]) + v.offset("qstr", &["len"]),
            ];
            let [parent, name, length] = fields;
            let free = v.frames(|role| matches!(role, Role::Free { .. }));
            let (texts, arena) = free.split_at(1);
            let text = v.direct(texts[0]);
            v.memory.write(texts[0].gpa(), &[0xff; 4096]).unwrap();
            let size = (fields.iter().max().unwrap() + 8).next_multiple_of(64);
            let slots: Vec<u64> = arena
                .iter()
                .flat_map(|&gfn| (0..FRAME_SIZE / size).map(move |i| (gfn, i * size)))
                .map(|(gfn, at)| v.direct(gfn) + at)
                .collect();
            // Each entry's parent is the next one; chains start all over memory.
            for pair in slots.windows(2) {
                v.store(Gva(pair[0] + parent), pair[1]);
                v.store(Gva(pair[0] + name), text);
                let old = v.load(Gva(pair[0] + (length & !7)));
                let value = if length % 8 == 4 {
                    (255 << 32) | (old & 0xffff_ffff)
                } else {
                    (old & !0xffff_ffff) | 255
                };
                v.store(Gva(pair[0] + (length & !7)), value);
            }
            // Copies of real inodes: one per frame, each at its own position in the chain.
            let file = v.guest.truth.files.iter().find(|f| f.path.is_some()).unwrap().clone();
            let host = v.offset("address_space", &["host"]);
            let i_mapping = v.offset("inode", &["i_mapping"]);
            let i_sb = v.offset("inode", &["i_sb"]);
            let i_ino = v.offset("inode", &["i_ino"]);
            let i_dentry = v.offset("inode", &["i_dentry"]);
            let alias = v.offset("dentry", &["d_u.d_alias", "d_alias"]);
            let real = v.load(Gva(file.mapping.0 + host));
            let super_block = v.load(Gva(real + i_sb));
            let (lru, mapping) = ((1 << 5) | (1 << 4), ["mapping"]);
            // The frames themselves hold the inodes: the second half of memory.
            let all = v.all_frames();
            let users: Vec<Gfn> = arena.iter().copied().rev().take(arena.len() / 2).collect();
            let inode_bytes = [i_mapping, i_sb, i_ino, i_dentry].iter().max().unwrap() + 16;
            let each = (inode_bytes + host + 16).next_multiple_of(64);
            let per_frame = FRAME_SIZE / each;
            let mut places =
                users.iter().flat_map(|&gfn| (0..per_frame).map(move |i| (gfn, i * each)));
            for (number, gfn) in (0_u64..).zip(all) {
                if v.is_table(gfn) {
                    continue;
                }
                let Some((place, at)) = places.next() else { break };
                let object = v.direct(place) + at;
                let inode = object;
                let space = object + inode_bytes.next_multiple_of(8);
                v.store(Gva(space + host), inode);
                v.store(Gva(inode + i_mapping), space);
                v.store(Gva(inode + i_sb), super_block);
                v.store(Gva(inode + i_ino), number);
                let slot = usize::try_from(number).unwrap() * 7 % (slots.len() / 2);
                v.store(Gva(inode + i_dentry), slots[slot] + alias);
                v.set_record(gfn, &[(&["flags"], lru), (&mapping, space)]);
            }
        },
    );
}

/// Every frame belongs to a slab cache of its own, with a name of the maximum length.
#[test]
fn a_cache_for_every_frame() {
    check_trap(
        "names take too much",
        |b| b.ram_bytes(64 << 20),
        |v| {
            let name = v.offset("kmem_cache", &["name"]);
            let free = v.frames(|role| matches!(role, Role::Free { .. }));
            v.memory.write(free[0].gpa(), &[0xff; 4096]).unwrap();
            let text = v.direct(free[0]);
            let per_frame = FRAME_SIZE / 64;
            let mut caches =
                free[1..].iter().flat_map(|&gfn| (0..per_frame).map(move |i| (gfn, i * 64)));
            let cache_at = v
                .guest
                .offset("slab", "slab_cache")
                .or(v.guest.offset("page", "slab_cache"))
                .unwrap();
            let slab = v.frames(|role| matches!(role, Role::Slab { .. }))[0];
            let record = v.record(slab);
            let words: Vec<u64> = (0..8).map(|i| v.load(Gva(record.0 + i * 8))).collect();
            for gfn in v.all_frames() {
                let to = v.record(gfn);
                if v.is_table(gfn) || v.guest.physical(to).is_none() {
                    continue;
                }
                let Some((place, at)) = caches.next() else { break };
                let cache = v.direct(place) + at;
                if name % 64 + 8 <= 64 {
                    v.store(Gva(cache + name % 64), text);
                }
                for (i, word) in (0..).zip(&words) {
                    v.store(Gva(to.0 + i * 8), *word);
                }
                v.store(Gva(to.0 + cache_at), (cache + name % 64).wrapping_sub(name));
            }
        },
    );
}

/// Page tables of processes that point back to themselves, at every level.
#[test]
fn user_tables_that_contain_themselves() {
    for isolated in [false, true] {
        check_trap(
            "user page tables",
            |b| b.page_table_isolation(isolated),
            |v| {
                for space in &v.guest.truth.spaces {
                    for table in &space.tables {
                        let own = table.gfn.gpa().0 | ENTRY;
                        v.fill(table.gfn, 0..256, |_| own);
                    }
                }
            },
        );
    }
}

/// The same in the kernel's tables, below the root.
#[test]
fn kernel_tables_that_contain_themselves() {
    for five_level in [false, true] {
        check_trap(
            "",
            |b| b.five_level(five_level),
            |v| {
                let tables = v.guest.truth.kernel.tables.clone();
                let root = tables.iter().map(|t| t.level).max().unwrap();
                for table in tables.iter().filter(|t| t.level < root) {
                    let own = table.gfn.gpa().0 | ENTRY;
                    v.fill(table.gfn, 0..128, |_| own);
                }
            },
        );
    }
}

/// All root entries of the kernel's half point to the same full tables.
#[test]
fn a_kernel_that_maps_everything_everywhere() {
    check_trap(
        "kernel",
        |b| b,
        |v| {
            let free = v.frames(|role| matches!(role, Role::Free { .. }));
            let [pdpt, pd, pt] = [free[0], free[1], free[2]];
            v.fill(pdpt, 0..512, |_| pd.gpa().0 | ENTRY);
            v.fill(pd, 0..512, |_| pt.gpa().0 | ENTRY);
            v.fill(pt, 0..512, |i| ((i * 37 % 512) * FRAME_SIZE) | ENTRY);
            let root = v.guest.truth.kernel.root.gfn();
            v.fill(root, 300..500, |_| pdpt.gpa().0 | ENTRY);
        },
    );
}

/// 1 GiB pages over the whole address range, contiguous, and a per-CPU area of the same size.
#[test]
fn huge_pages_without_end() {
    check_trap(
        "",
        |b| b,
        |v| {
            let free = v.frames(|role| matches!(role, Role::Free { .. }));
            let root = v.guest.truth.kernel.root.gfn();
            for (i, &pdpt) in (0..40).zip(&free) {
                v.fill(pdpt, 0..512, |at| ((i * 512 + at) << 30) | ENTRY | LARGE);
                v.put(Gpa(root.gpa().0 + (300 + i) * 8), pdpt.gpa().0 | ENTRY);
            }
            let first = 0xffff_0000_0000_0000 | (300 << 39);
            let per_cpu = [
                ("pcpu_base_addr", first),
                ("pcpu_unit_size", u64::from(u32::MAX)),
                ("pcpu_nr_units", 8192),
            ];
            for (name, value) in per_cpu {
                if let Some(at) = v.guest.symbol(name) {
                    v.store(at, value);
                }
            }
            // The same in processes' page tables.
            for space in v.guest.truth.spaces.clone() {
                let pdpt = free[0];
                v.fill(space.root.gfn(), 0..256, |_| pdpt.gpa().0 | ENTRY);
            }
        },
    );
}

/// Every free frame is a process's root table, and each maps all of memory.
#[test]
fn a_process_in_every_frame() {
    check_trap(
        "too many roots",
        |b| b,
        |v| {
            let free = v.frames(|role| matches!(role, Role::Free { .. }));
            let kernel_root = v.guest.truth.kernel.root.gfn();
            let mut half = vec![0; 2048];
            v.memory.read(Gpa(kernel_root.gpa().0 + 2048), &mut half).unwrap();
            let [pdpt, pd, pt] = [free[0], free[1], free[2]];
            v.fill(pdpt, 0..512, |_| pd.gpa().0 | ENTRY);
            v.fill(pd, 0..512, |_| pt.gpa().0 | ENTRY);
            v.fill(pt, 0..512, |i| (i * FRAME_SIZE) | ENTRY);
            for &root in &free[3..] {
                v.memory.write(Gpa(root.gpa().0 + 2048), &half).unwrap();
                v.fill(root, 0..256, |_| pdpt.gpa().0 | ENTRY);
                // Allocated, as far as the frame table says.
                v.set_record(root, &[(&["_refcount"], 1 | (0xffff_ffff << 32))]);
            }
        },
    );
}

#[test]
fn blocks_of_absurd_order() {
    for order in [10, 11, 31, 32, 63, 64, u64::MAX] {
        check_trap(
            "",
            |b| b,
            |v| {
                let free = v.frames(|role| matches!(role, Role::Free { .. }));
                let private = v.offset("page", &["private"]);
                for gfn in free {
                    let record = v.record(gfn);
                    v.store(Gva(record.0 + private), order);
                }
            },
        );
    }
}

/// Tail pages whose heads are tails, themselves, or outside memory.
#[test]
fn tails_without_heads() {
    for distance in [0_u64, 64, 128, 1 << 20, 1 << 40, u64::MAX - 63] {
        check_trap(
            "",
            |b| b,
            |v| {
                let compound = v.offset("page", &["compound_head", "compound_info"]);
                for gfn in v.all_frames() {
                    let record = v.record(gfn);
                    if !gfn.0.is_multiple_of(3) && v.guest.physical(record).is_some() {
                        v.store(Gva(record.0 + compound), record.0.wrapping_sub(distance) | 1);
                    }
                }
            },
        );
    }
}

#[test]
fn records_of_ones_and_of_zeros() {
    for value in [0, u64::MAX] {
        check_trap(
            "",
            |b| b,
            |v| {
                for gfn in v.frames(|role| role == Role::FrameTable) {
                    v.fill(gfn, 0..512, |_| value);
                }
            },
        );
    }
}

/// Each free frame is both a page that leads to a kernel (VMCOREINFO) and the root table that it
/// names. These tables map themselves where the note says, and everything else repeatedly, but no
/// code. Each costs a page-table walk before it is rejected.
#[test]
fn decoys_of_the_note() {
    let note = "OSRELEASE=decoy\nNUMBER(phys_base)=0\nSYMBOL(swapper_pg_dir)=";
    check_trap(
        "",
        |b| b,
        |v| {
            let free = v.frames(|role| matches!(role, Role::Free { .. }));
            let [top, image, pdpt, pd, pt] = [free[0], free[1], free[2], free[3], free[4]];
            let no_code = ENTRY | 1 << 63;
            v.fill(pdpt, 0..512, |_| pd.gpa().0 | no_code);
            v.fill(pd, 0..512, |_| pt.gpa().0 | no_code);
            v.fill(pt, 0..512, |i| (i * 37 % 512 * FRAME_SIZE) | no_code);
            v.fill(top, 0..512, |_| pdpt.gpa().0 | no_code);
            v.put(Gpa(top.gpa().0 + 510 * 8), image.gpa().0 | no_code);
            v.fill(image, 0..512, |i| (i << 21) | no_code | LARGE);
            for &root in &free[5..free.len().min(300)] {
                let own = 0xffff_ffff_8000_0000 | root.gpa().0;
                v.fill(root, 256..511, |_| pdpt.gpa().0 | no_code);
                v.put(Gpa(root.gpa().0 + 511 * 8), top.gpa().0 | no_code);
                v.memory.write(root.gpa(), format!("{note}{own:x}\n\0").as_bytes()).unwrap();
            }
        },
    );
}

/// Each frame has an unreadable page of its own kind, without symbols, types or the note.
#[test]
fn nothing_but_damage() {
    check_trap(
        "",
        |b| b,
        |v| {
            for gfn in v.frames(|role| {
                matches!(role, Role::Slab { .. } | Role::KernelRodata | Role::PerCpu)
            }) {
                v.fill(gfn, 0..512, |i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            }
        },
    );
}
