//! Introspection of synthetic guests finds the truth, whichever sources of information remain.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as tests")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "only some roles and colors have names or exceptions"
)]

use kaleidoscope_core::addr::{FrameIndex, Gfn};
use kaleidoscope_core::color::{Color, FrameKind, Order, Temperature};
use kaleidoscope_core::coloring::{Coloring, ColoringError, ColoringOptions, color};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use kaleidoscope_mock::linux::{FileKind, GuestBuilder, KernelStyle, MockGuest, Role, Truth};
use std::collections::{BTreeMap, BTreeSet};

/// Which of the guest's own descriptions remain.
#[derive(Clone, Copy, Debug)]
struct Layers {
    registers: bool,
    symbols: bool,
    types: bool,
    note: bool,
}

const ALL: Layers = Layers { registers: true, symbols: true, types: true, note: true };

/// Colors a guest after removing the other descriptions.
fn try_color(guest: &MockGuest, layers: Layers) -> Result<Coloring, ColoringError> {
    let mut guest = guest.clone();
    if !layers.symbols {
        guest.wipe_kallsyms().unwrap();
    }
    if !layers.types {
        guest.wipe_btf().unwrap();
    }
    if !layers.note {
        guest.wipe_vmcoreinfo().unwrap();
    }
    let registers = if layers.registers { guest.registers.clone() } else { Vec::new() };
    color(&guest.memory, &ColoringOptions::default().registers(registers))
}

/// What can be known of a frame from the remaining descriptions; several answers where it depends
/// on more than the frame's role.
fn expected(truth: &Truth, layers: Layers, index: FrameIndex) -> Vec<(FrameKind, Color)> {
    let (kind, color) = (truth.kind(index), truth.color(index));
    // The first task's stack is part of the image.
    let stack = truth.tasks[0].stack.0 - truth.kernel.image_offset;
    let gfn = truth.layout().gfn_of(index).unwrap();
    if layers.symbols && layers.types && (stack >> 12..(stack >> 12) + 4).contains(&gfn.0) {
        return vec![(kind, Color::KernelStack)];
    }
    match color {
        // Tasks are found by symbol, and read by type information.
        Color::KernelStack if !(layers.symbols && layers.types) => vec![(kind, Color::Vmalloc)],
        // The CPU entry area reveals part of them in any case.
        Color::PerCpu if !layers.symbols => vec![(kind, color), (kind, Color::Reserved)],
        // Without types, a block device's inode cannot be told from others.
        Color::BlockCache if !layers.types => vec![(FrameKind::File, Color::FileCache)],
        // VMCOREINFO does not name this page type.
        Color::Slab if kind == FrameKind::Kernel && !layers.types => {
            vec![(kind, Color::KernelAlloc)]
        }
        _ => vec![(kind, color)],
    }
}

/// Panics if introspection disagrees with what can be known; reports how often, and the first
/// frame.
fn check_frames(name: &str, guest: &MockGuest, coloring: &Coloring, layers: Layers) {
    let mut wrong: BTreeMap<String, (u32, Gfn)> = BTreeMap::new();
    for (index, gfn, frame) in coloring.map.iter() {
        let answers = expected(&guest.truth, layers, index);
        if !answers.contains(&(frame.kind, frame.color)) {
            let role = format!("{:?}", guest.truth.role(gfn).unwrap());
            let role = role.split(' ').next().unwrap();
            let text = format!("{role} {answers:?} found {}/{}", frame.kind, frame.color);
            wrong.entry(text).or_insert((0, gfn)).0 += 1;
        }
    }
    assert!(wrong.is_empty(), "{name} {layers:?}: {wrong:#?}");
}

fn shapes(style: KernelStyle) -> Vec<(&'static str, GuestBuilder)> {
    let base = GuestBuilder::new(style).ram_bytes(48 << 20);
    vec![
        ("plain", base.clone().seed(1)),
        ("not random", base.clone().kaslr(false).numa(false).cpus(1).seed(2)),
        ("5-level", base.clone().five_level(true).seed(3)),
        ("isolated", base.clone().page_table_isolation(true).seed(4)),
        ("isolated 5-level", base.clone().page_table_isolation(true).five_level(true).seed(5)),
        ("hole", base.clone().pci_hole_at(32 << 20).cpus(3).seed(6)),
        ("small", base.clone().ram_bytes(16 << 20).processes(2).seed(7)),
        ("stale note", base.stale_note(true).seed(8)),
    ]
}

#[test]
fn kinds_and_colors_are_true_in_every_layer() {
    for style in KernelStyle::ALL {
        for (shape, builder) in shapes(style) {
            let guest = builder.build().unwrap();
            let name = format!("{style:?} {shape}");
            for (registers, symbols, types) in [
                (true, true, true),
                (false, true, true),
                (true, false, true),
                (false, true, false),
                (true, false, false),
                (false, false, false),
            ] {
                let layers = Layers { registers, symbols, types, note: true };
                let coloring =
                    try_color(&guest, layers).unwrap_or_else(|e| panic!("{name} {layers:?}: {e}"));
                check_frames(&name, &guest, &coloring, layers);
            }
            let layers = Layers { note: false, ..ALL };
            let coloring =
                try_color(&guest, layers).unwrap_or_else(|e| panic!("{name} {layers:?}: {e}"));
            check_frames(&name, &guest, &coloring, layers);
        }
    }
}

#[test]
fn many_seeds_give_many_structures() {
    for seed in 100..106 {
        for style in KernelStyle::ALL {
            let guest = GuestBuilder::new(style).seed(seed).ram_bytes(32 << 20).build().unwrap();
            for layers in
                [ALL, Layers { registers: false, symbols: false, types: false, note: true }]
            {
                let coloring = try_color(&guest, layers).unwrap();
                check_frames(&format!("{style:?} {seed}"), &guest, &coloring, layers);
            }
        }
    }
}

#[test]
fn words_of_the_page_may_move_where_types_tell() {
    for style in KernelStyle::ALL {
        for seed in 0..4 {
            let guest = GuestBuilder::new(style).move_page_words(true).seed(seed).build().unwrap();
            let coloring = try_color(&guest, ALL).unwrap();
            check_frames(&format!("{style:?} {seed}"), &guest, &coloring, ALL);
        }
    }
}

/// A kernel without VMCOREINFO, as small VMMs build theirs, and an image without registers: the
/// kernel is found from a root table that maps its image.
#[test]
fn a_kernel_is_found_without_registers_and_note() {
    for style in KernelStyle::ALL {
        for (shape, builder) in shapes(style) {
            let guest = builder.build().unwrap();
            let layers = Layers { registers: false, note: false, ..ALL };
            let name = format!("{style:?} {shape}");
            let coloring = try_color(&guest, layers).unwrap_or_else(|e| panic!("{name}: {e}"));
            check_frames(&name, &guest, &coloring, layers);
            assert!(coloring.notes().is_empty(), "{name}: {:?}", coloring.notes());
        }
    }
}

/// If no kernel is found, the error names what would help.
#[test]
fn memory_without_a_kernel_says_what_to_give() {
    let empty = VecMemory::zeroed(MemoryLayout::contiguous(1 << 20).unwrap());
    let error = color(&empty, &ColoringOptions::default()).unwrap_err();
    assert!(error.to_string().contains("registers"), "{error}");
}

/// Device numbers as stat(2) reports them.
fn stat_device(device: u32) -> u64 {
    let (major, minor) = (u64::from(device >> 20), u64::from(device & 0xf_ffff));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// Region names and positions of page cache, slab and anonymous frames.
#[test]
fn names_and_positions_are_true() {
    for style in KernelStyle::ALL {
        let guest = GuestBuilder::new(style).seed(21).build().unwrap();
        let coloring = try_color(&guest, ALL).unwrap();
        let truth = &guest.truth;
        for (_, gfn, frame) in coloring.map.iter() {
            let region = frame.region.and_then(|id| coloring.map.region(id));
            match truth.role(gfn).unwrap() {
                Role::Cache { file, index } => {
                    let file = &truth.files[file as usize];
                    let region = region.unwrap();
                    assert_eq!(
                        (region.order, frame.position),
                        (Order::FileOffset, index),
                        "{gfn} {file:?}"
                    );
                    let device = if file.kind == FileKind::Block {
                        u32::try_from(file.inode).unwrap()
                    } else {
                        file.device
                    };
                    let start = format!("{}:{}:{}:", file.fs, stat_device(device), file.inode);
                    let path = region
                        .name
                        .strip_prefix(&start)
                        .unwrap_or_else(|| panic!("{} {file:?}", region.name));
                    match &file.path {
                        Some(known) => assert_eq!(path, known),
                        None => assert!(path.is_empty() || path.ends_with(" (deleted)"), "{path}"),
                    }
                }
                Role::Slab { cache } => {
                    assert_eq!(region.unwrap().name, truth.caches[cache as usize])
                }
                Role::Anonymous { .. } | Role::Merged { .. } => {
                    let maps = |s: &kaleidoscope_mock::linux::SpaceTruth| {
                        s.leaves.iter().any(|l| {
                            let distance = frame.position.checked_sub(l.gva.0 >> 12);
                            distance.is_some_and(|d| l.gpa.gfn().0.checked_add(d) == Some(gfn.0))
                        })
                    };
                    assert!(
                        truth.spaces.iter().any(maps),
                        "{style:?} {gfn} is not mapped at {:#x}",
                        frame.position
                    );
                    assert_eq!(region.unwrap().order, Order::UserAddress);
                }
                _ => {}
            }
        }
        let kernel = coloring.map.kernel();
        assert_eq!(kernel.release, truth.kernel.release);
        assert_eq!(kernel.banner.trim_end(), truth.kernel.banner.trim_end());
        assert!(coloring.notes().is_empty(), "{:?}", coloring.notes());
    }
}

/// Free frames have positions in the order of the kernel's own lists, and each list has its own
/// number.
#[test]
fn free_frames_are_in_the_order_of_their_lists() {
    for style in KernelStyle::ALL {
        for (shape, builder) in shapes(style) {
            let guest = builder.build().unwrap();
            let lists = guest.free_lists().unwrap();
            assert!(lists.iter().filter(|frames| frames.len() > 1).count() > 4);
            for layers in [
                ALL,
                Layers { registers: false, symbols: false, types: false, note: true },
                Layers { note: false, ..ALL },
            ] {
                let name = format!("{style:?} {shape} {layers:?}");
                let map = try_color(&guest, layers).unwrap().map;
                let mut numbers = BTreeSet::new();
                let mut listed = BTreeSet::new();
                for frames in &lists {
                    let number = |gfn: &Gfn| {
                        let index = map.layout().index_of(*gfn).unwrap();
                        let frame = map.frame(index).unwrap();
                        let region = map.region(frame.region.unwrap()).unwrap();
                        assert_eq!(region.order, Order::Allocation, "{name} {gfn}");
                        let list = Order::list_of(frame.position);
                        (list.unwrap_or_else(|| panic!("{name} {gfn}")), frame.position)
                    };
                    let (list, _) = number(&frames[0]);
                    assert!(numbers.insert(list), "{name}: two lists have the number {list}");
                    for (before, gfn) in (0..).zip(frames) {
                        let position = Order::position_on_list(list, before);
                        assert_eq!(number(gfn), (list, position), "{name} {gfn}");
                        assert!(listed.insert(*gfn));
                    }
                }
                let free = map.iter().filter(|(_, _, frame)| frame.kind == FrameKind::Free);
                assert!(free.map(|(_, gfn, _)| gfn).eq(listed.iter().copied()), "{name}");
                let last = u32::try_from(numbers.len()).unwrap() - 1;
                assert_eq!(numbers.last(), Some(&last), "{name}: numbers without gaps");
            }
        }
    }
}

#[test]
fn temperature_is_true() {
    let not_in_truth = Temperature::RECENT_TASK | Temperature::FREQUENT | Temperature::COMMON;
    for style in KernelStyle::ALL {
        for isolated in [false, true] {
            let guest =
                GuestBuilder::new(style).page_table_isolation(isolated).seed(31).build().unwrap();
            let coloring = try_color(&guest, ALL).unwrap();
            for (_, gfn, frame) in coloring.map.iter() {
                for (sign, name) in Temperature::NAMES {
                    // Not in the guest's truth: which task ran last, and what other guests use.
                    if !not_in_truth.contains(sign) {
                        let (found, known) = (frame.temperature, guest.truth.temperature(gfn));
                        assert_eq!(
                            found.contains(sign),
                            known.contains(sign),
                            "{style:?} {gfn} {name}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn processes_are_found() {
    for style in KernelStyle::ALL {
        for isolated in [false, true] {
            let guest =
                GuestBuilder::new(style).page_table_isolation(isolated).seed(41).build().unwrap();
            let coloring = try_color(&guest, ALL).unwrap();
            let known: BTreeSet<(u32, &str)> = guest
                .truth
                .tasks
                .iter()
                .filter(|t| t.space.is_some() && t.pid == t.tgid)
                .map(|t| (t.pid, t.comm.as_str()))
                .collect();
            let found: BTreeSet<(u32, &str)> =
                coloring.processes().iter().map(|p| (p.pid.unwrap(), p.name.as_str())).collect();
            assert_eq!(found, known);
            let threads: u32 = coloring.processes().iter().map(|p| p.threads).sum();
            assert_eq!(
                threads as usize,
                guest.truth.tasks.iter().filter(|t| t.space.is_some()).count()
            );
        }
    }
}
