use super::*;
use crate::paging::translate;
use crate::ram::{read_u32, read_u64};
use kaleidoscope_core::addr::{Gfn, Gva};
use kaleidoscope_core::color::FrameKind;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// Guests of every style, and of every configuration with some style; built once.
fn variants() -> &'static [(String, MockGuest)] {
    static VARIANTS: LazyLock<Vec<(String, MockGuest)>> = LazyLock::new(|| {
        let shape = |number: usize, builder: GuestBuilder| match number % 4 {
            0 => builder.five_level(true),
            1 => builder.page_table_isolation(true),
            2 => builder.pci_hole_at(24 << 20).cpus(4),
            _ => builder.kaslr(false).numa(false).cpus(1),
        };
        let styles = KernelStyle::ALL.into_iter().enumerate();
        let builders = styles.flat_map(|(i, style)| {
            let base = GuestBuilder::new(style).seed(i as u64).ram_bytes(32 << 20);
            [base.clone(), shape(i, base.clone()), shape(i + 1, base)]
        });
        let named = |(i, builder): (usize, GuestBuilder)| {
            let guest = builder.build().unwrap();
            (format!("{:?} {}", guest.truth.kernel.style, i % 3), guest)
        };
        builders.enumerate().map(named).collect()
    });
    &VARIANTS
}

impl MockGuest {
    fn field_at(&self, structure: &str, path: &str) -> u64 {
        self.offset(structure, path).unwrap()
    }

    fn u64_at(&self, gva: u64) -> u64 {
        read_u64(&self.memory, self.physical(Gva(gva)).unwrap()).unwrap()
    }

    fn u32_at(&self, gva: u64) -> u32 {
        read_u32(&self.memory, self.physical(Gva(gva)).unwrap()).unwrap()
    }

    fn record_at(&self, gfn: Gfn) -> u64 {
        self.truth.kernel.vmemmap.0 + gfn.0 * 64
    }

    /// Nodes of a list, without its head.
    fn list(&self, head: u64) -> Vec<u64> {
        let mut nodes = Vec::new();
        let mut at = self.u64_at(head);
        while at != head {
            assert_eq!(self.u64_at(self.u64_at(at + 8)), at, "a node's predecessor leads to it");
            nodes.push(at);
            assert!(nodes.len() < 1 << 20);
            at = self.u64_at(at);
        }
        nodes
    }

    /// The frame whose record contains a list node.
    fn frame_of_node(&self, node: u64) -> Gfn {
        Gfn((node - self.field_at("page", "lru") - self.truth.kernel.vmemmap.0) / 64)
    }

    fn zones(&self) -> Vec<u64> {
        let node = match self.symbol("node_data") {
            Some(array) => self.u64_at(array.0),
            None => self.symbol("contig_page_data").unwrap().0,
        };
        let first = node + self.field_at("pglist_data", "node_zones");
        let size = self.types.size_of("zone").unwrap();
        (0..3).map(|i| first + i * size).collect()
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let build = |seed| {
        GuestBuilder::new(KernelStyle::V6_12).ram_bytes(16 << 20).seed(seed).build().unwrap()
    };
    let (a, b, c) = (build(1), build(1), build(2));
    assert!(a.memory.bytes() == b.memory.bytes() && a.truth == b.truth);
    assert!(a.memory.bytes() != c.memory.bytes());
    assert_ne!(a.offset("task_struct", "tasks"), c.offset("task_struct", "tasks"));
}

#[test]
fn impossible_knobs_are_refused() {
    let refused = |b: GuestBuilder| assert!(matches!(b.build(), Err(crate::MockError::Knobs(_))));
    let base = GuestBuilder::new(KernelStyle::V6_1);
    refused(base.clone().ram_bytes(8 << 20));
    refused(base.clone().ram_bytes((64 << 20) + 4096));
    refused(base.clone().pci_hole_at(4096));
    refused(base.clone().cpus(0));
    refused(base.clone().cpus(33));
    refused(base.processes(0));
}

#[test]
fn every_kind_of_frame_occurs() {
    let mut kinds = BTreeSet::new();
    for (_, guest) in variants() {
        kinds.extend(guest.truth.layout().iter().map(|(index, _)| guest.truth.kind(index)));
    }
    let known: Vec<_> = FrameKind::ALL.into_iter().filter(|&k| k != FrameKind::Unknown).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), known);
}

#[test]
fn free_blocks_are_aligned_merged_and_on_their_lists() {
    for (name, guest) in variants() {
        let truth = &guest.truth;
        let mut covered = BTreeSet::new();
        for (&first, &order) in &truth.free_blocks {
            assert_eq!(first.0 % (1 << order), 0, "{name}");
            covered.extend((0..1u64 << order).map(|i| Gfn(first.0 + i)));
            // The allocator would have merged two buddies into a larger block.
            let buddy = Gfn(first.0 ^ 1 << order);
            assert!(order == 10 || truth.free_blocks.get(&buddy) != Some(&order), "{name} {first}");
            assert_eq!(
                guest.u64_at(guest.record_at(first) + guest.field_at("page", "private")),
                order.into()
            );
        }
        let free = truth
            .layout()
            .iter()
            .filter(|(_, gfn)| matches!(truth.role(*gfn), Some(Role::Free { .. })));
        assert_eq!(free.map(|(_, gfn)| gfn).collect::<BTreeSet<_>>(), covered, "{name}");

        let mut listed = BTreeMap::new();
        let (area_size, lists_at) =
            (guest.types.size_of("free_area").unwrap(), guest.field_at("free_area", "free_list"));
        for zone in guest.zones() {
            for order in 0..11 {
                let area =
                    zone + guest.field_at("zone", "free_area") + u64::from(order) * area_size;
                let before = listed.len();
                for list in 0..u64::from(truth.kernel.style.migrate_types()) {
                    let nodes = guest.list(area + lists_at + 16 * list);
                    listed.extend(nodes.into_iter().map(|n| (guest.frame_of_node(n), order)));
                }
                let count = guest.u64_at(area + guest.field_at("free_area", "nr_free"));
                assert_eq!(count, (listed.len() - before) as u64, "{name}");
            }
        }
        assert_eq!(listed, truth.free_blocks, "{name}");
    }
}

#[test]
fn per_cpu_lists_hold_their_pages() {
    for (name, guest) in variants() {
        let style = guest.truth.kernel.style;
        let (pageset, lists) = if style == KernelStyle::V5_10 {
            ("pageset", guest.field_at("per_cpu_pageset", "pcp.lists"))
        } else {
            ("per_cpu_pageset", guest.field_at("per_cpu_pages", "lists"))
        };
        let mut listed = BTreeSet::new();
        for cpu in 0..guest.registers.len() as u64 {
            let offset = guest.u64_at(guest.symbol("__per_cpu_offset").unwrap().0 + 8 * cpu);
            let own = guest.symbol("this_cpu_off").unwrap().0.wrapping_add(offset);
            assert_eq!(guest.u64_at(own), offset, "{name}");
            for zone in guest.zones() {
                let pages =
                    guest.u64_at(zone + guest.field_at("zone", pageset)).wrapping_add(offset);
                for list in 0..u64::from(style.per_cpu_lists()) {
                    for node in guest.list(pages + lists + 16 * list) {
                        let head = guest.frame_of_node(node);
                        listed.extend((0..1 << (list / 3)).map(|i| Gfn(head.0 + i)));
                    }
                }
            }
        }
        let truth = &guest.truth;
        let known = truth.layout().iter().map(|f| f.1);
        let known = known.filter(|g| matches!(truth.role(*g), Some(Role::PerCpuFree { .. })));
        assert_eq!(listed, known.collect::<BTreeSet<_>>(), "{name}");
    }
}

#[test]
fn page_tables_map_what_is_true() {
    for (name, guest) in variants() {
        let kernel = &guest.truth.kernel;
        let check = |root, leaf: &crate::paging::LeafTruth| {
            let last = leaf.size.bytes() - 1;
            for offset in [0, last] {
                let found = translate(&guest.memory, kernel.mode, root, Gva(leaf.gva.0 + offset));
                let found = found.unwrap_or_else(|| panic!("{name} {}", leaf.gva));
                assert_eq!(
                    (found.gpa.0, found.rights),
                    (leaf.gpa.0 + offset, leaf.rights),
                    "{name}"
                );
                assert_eq!((found.accessed, found.dirty), (leaf.accessed, leaf.dirty), "{name}");
            }
        };
        kernel.leaves.iter().for_each(|leaf| check(kernel.root, leaf));
        for space in &guest.truth.spaces {
            space.leaves.iter().for_each(|leaf| check(space.user_root, leaf));
            // Every process has the same kernel mappings as the kernel's own root.
            kernel.leaves.iter().for_each(|leaf| check(space.root, leaf));
        }
        let tables = guest.truth.spaces.iter().flat_map(|s| &s.tables);
        for table in tables {
            let expected = Role::PageTable { level: table.level };
            assert_eq!(guest.truth.role(table.gfn), Some(expected));
        }
    }
}

#[test]
fn records_say_what_frames_are() {
    for (name, guest) in variants() {
        let truth = &guest.truth;
        let style = truth.kernel.style;
        let word = |gfn| guest.u32_at(guest.record_at(gfn) + guest.field_at("page", "page_type"));
        let flags = |gfn| guest.u64_at(guest.record_at(gfn));
        for (_, gfn) in truth.layout().iter() {
            let is_reserved = flags(gfn) & style.flag("PG_reserved") != 0;
            let role = truth.role(gfn).unwrap();
            assert_eq!(is_reserved, role.is_reserved(), "{name} {gfn} {role:?}");
            if role == Role::Offline {
                assert_eq!(Some(word(gfn)), style.page_type_word(style::PageType::Offline));
            }
        }
        for file in &truth.files {
            for (&index, &(head, order)) in &file.folios {
                let record = guest.record_at(head);
                assert_eq!(
                    guest.u64_at(record + guest.field_at("page", "mapping")),
                    file.mapping.0,
                    "{name}"
                );
                let field = if style == KernelStyle::V7_2 { "__folio_index" } else { "index" };
                assert_eq!(guest.u64_at(record + guest.field_at("page", field)), index, "{name}");
                assert_eq!(flags(head) & style.flag("PG_head") != 0, order > 0, "{name}");
                for i in 0..1 << order {
                    let role = truth.role(Gfn(head.0 + i));
                    assert!(
                        matches!(role, Some(Role::Cache { index: at, .. }) if at == index + i),
                        "{name}"
                    );
                }
            }
        }
    }
}

/// Reads an xarray by the rules of its documentation; returns the folio at every index, following
/// siblings.
fn read_xarray(guest: &MockGuest, entry: u64, base: u64, out: &mut BTreeMap<u64, u64>) {
    if entry & 3 != 2 {
        if entry != 0 && entry & 1 == 0 {
            out.insert(base, entry);
        }
        return;
    }
    let node = entry & !3;
    let at = |field| node + guest.field_at("xa_node", field);
    let shift = guest.u64_at(at("shift")) & 0xff;
    let mut used = 0;
    for slot in 0..64 {
        let child = guest.u64_at(at("slots") + 8 * slot);
        used += u64::from(child != 0);
        let first = base + (slot << shift);
        if child & 3 == 2 && child < 256 {
            let canonical = guest.u64_at(at("slots") + 8 * (child >> 2));
            assert!(child >> 2 < slot && canonical & 3 == 0 && canonical != 0);
        } else {
            read_xarray(guest, child, first, out);
        }
    }
    assert_eq!(guest.u64_at(at("count")) & 0xff, used);
}

#[test]
fn the_page_cache_is_indexed() {
    for (name, guest) in variants() {
        for file in &guest.truth.files {
            let head =
                guest.u64_at(file.mapping.0 + guest.field_at("address_space", "i_pages.xa_head"));
            let mut found = BTreeMap::new();
            read_xarray(guest, head, 0, &mut found);
            let known = file.folios.iter().map(|(&index, &(gfn, _))| (index, guest.record_at(gfn)));
            assert_eq!(found, known.collect::<BTreeMap<_, _>>(), "{name} {:?}", file.path);
        }
    }
}

#[test]
fn tasks_are_listed() {
    for (name, guest) in variants() {
        let at = |path| guest.field_at("task_struct", path);
        let head = guest.symbol("init_task").unwrap().0 + at("tasks");
        let mut found = BTreeSet::from([0]);
        for node in guest.list(head) {
            let task = node - at("tasks");
            let signal = guest.u64_at(task + at("signal"));
            for thread in guest.list(signal + guest.field_at("signal_struct", "thread_head")) {
                found.insert(guest.u32_at(thread - at("thread_node") + at("pid")));
            }
        }
        assert_eq!(found, guest.truth.tasks.iter().map(|t| t.pid).collect(), "{name}");
    }
}

/// Offsets of a structure's direct members by name, read from BTF by a decoder that is independent
/// of the encoder.
fn members_in_btf(bytes: &[u8], wanted: &str) -> BTreeMap<String, u64> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (types, strings) = (24 + u32_at(8) as usize, 24 + u32_at(16) as usize);
    let end = types + u32_at(12) as usize;
    let name = |offset: u32| {
        let text = &bytes[strings + offset as usize..];
        String::from_utf8(text.iter().copied().take_while(|&b| b != 0).collect()).unwrap()
    };
    let mut at = types;
    let mut out = BTreeMap::new();
    while at < end {
        let info = u32_at(at + 4);
        let (kind, count, flag) = (info >> 24 & 31, (info & 0xffff) as usize, info >> 31 == 1);
        let words = match kind {
            1 | 14 | 17 => 1,
            2 | 7..=12 | 16 | 18 => 0,
            3 => 3,
            4 | 5 | 15 | 19 => 3 * count,
            6 | 13 => 2 * count,
            other => panic!("kind {other} at {at:#x}"),
        };
        if (kind == 4 || kind == 5) && name(u32_at(at)) == wanted {
            for m in 0..count {
                let place = at + 12 + 12 * m;
                let bits = if flag { u32_at(place + 8) & 0xff_ffff } else { u32_at(place + 8) };
                out.insert(name(u32_at(place)), u64::from(bits) / 8);
            }
        }
        at += 12 + 4 * words;
    }
    assert_eq!(at, end);
    out
}

#[test]
fn type_information_agrees_with_the_layout() {
    for (name, guest) in variants() {
        let (gva, bytes) = guest.truth.kernel.btf;
        let gpa = gva.0 - guest.truth.kernel.image_offset;
        let index = guest.truth.layout().index_of(Gfn(gpa >> 12)).unwrap().as_usize();
        let start = index * 4096 + usize::try_from(gpa & 0xfff).unwrap();
        let btf = &guest.memory.bytes()[start..start + usize::try_from(bytes).unwrap()];
        for structure in
            ["task_struct", "inode", "super_block", "zone", "kmem_cache", "mount", "address_space"]
        {
            let members = members_in_btf(btf, structure);
            assert!(members.len() > 8, "{name} {structure}");
            for (member, offset) in members.iter().filter(|m| !m.0.is_empty()) {
                assert_eq!(
                    guest.offset(structure, member),
                    Some(*offset),
                    "{name} {structure}.{member}"
                );
            }
        }
    }
}

#[test]
fn the_note_is_found_at_the_start_of_its_page() {
    for (name, guest) in variants() {
        let start: [u8; 10] = *b"OSRELEASE=";
        let pages =
            guest.memory.bytes().chunks(4096).enumerate().filter(|(_, p)| p.starts_with(&start));
        let indices: Vec<_> = pages.map(|(i, _)| i).collect();
        let note = guest.truth.layout().index_of(guest.truth.kernel.vmcoreinfo.gfn()).unwrap();
        assert_eq!(indices, [note.as_usize()], "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_knobs_give_a_consistent_guest(
        style in 0usize..4,
        seed: u64,
        megabytes in 8u64..20,
        five_level: bool,
        isolated: bool,
        cpus in 1u32..6,
        processes in 1u32..4,
    ) {
        let guest = GuestBuilder::new(KernelStyle::ALL[style])
            .seed(seed)
            .ram_bytes((megabytes * 2) << 20)
            .five_level(five_level)
            .page_table_isolation(isolated)
            .cpus(cpus)
            .processes(processes)
            .build()
            .unwrap();
        prop_assert_eq!(guest.truth.roles().len() as u64, megabytes * 512);
        prop_assert_eq!(guest.registers.len(), cpus as usize);
        prop_assert_eq!(guest.truth.spaces.len(), processes as usize);
        // Mappings by processes are recorded in `users`, and no mapped frame is free.
        for space in &guest.truth.spaces {
            for leaf in &space.leaves {
                let gfn = leaf.gpa.gfn();
                prop_assert!(guest.truth.users(gfn).spaces > 0);
                let is_free = matches!(
                    guest.truth.role(gfn),
                    None | Some(Role::Free { .. } | Role::PerCpuFree { .. })
                );
                prop_assert!(!is_free);
            }
        }
    }
}
