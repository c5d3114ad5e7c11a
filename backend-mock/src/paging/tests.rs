use super::*;
use crate::{MockError, Rng};
use kaleidoscope_core::addr::{Gfn, Gpa, Gva};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use proptest::prelude::*;
use std::collections::BTreeSet;

const ROOT: Gpa = Gpa(0x1000);

fn memory() -> VecMemory {
    VecMemory::zeroed(MemoryLayout::contiguous(1 << 20).unwrap())
}

/// A few hundred random mappings; conflicting ones are skipped.
fn random_tables(mode: Mode, seed: u64, noise: bool) -> (VecMemory, PageTables) {
    let (mut memory, mut rng) = (memory(), Rng::new(seed));
    let mut tables = PageTables::new(mode, ROOT);
    if noise {
        tables = tables.with_noise(Rng::new(!seed));
    }
    let mut frames = FrameRange::new(Gfn(2), 254);
    for _ in 0..60 {
        let size = mode.page_sizes()[rng.index(mode.page_sizes().len())];
        // Few distinct upper bits, so that tables are shared and collisions occur.
        let raw = rng.below(2) << 56 | rng.below(2) << 47 | rng.below(3) << 39 | rng.below(4) << 30;
        let raw = raw | rng.below(3) << 21 | rng.below(512) << 12;
        let bits = if mode == Mode::FiveLevel { 57 } else { 48 };
        let gva = match mode {
            Mode::Bits32 | Mode::Pae => raw & 0xffff_ffff,
            Mode::FourLevel | Mode::FiveLevel => {
                ((raw << (64 - bits)).cast_signed() >> (64 - bits)).cast_unsigned()
            }
        };
        let gva = Gva(gva & !(size.bytes() - 1));
        let gpa = Gpa(rng.below(mode.physical_limit(size)) & !(size.bytes() - 1));
        let bit = |rng: &mut Rng| rng.one_in(2);
        let rights = Rights { user: bit(&mut rng), write: bit(&mut rng), exec: bit(&mut rng) };
        let upper = Rights { user: bit(&mut rng), write: bit(&mut rng), exec: bit(&mut rng) };
        let attributes = Attributes {
            rights,
            accessed: bit(&mut rng),
            dirty: bit(&mut rng),
            global: bit(&mut rng),
        };
        match tables.map_under(&mut memory, &mut frames, (gva, gpa), size, attributes, upper) {
            Ok(()) | Err(MockError::Mapped { .. } | MockError::OutOfFrames { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    (memory, tables)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_oracle_finds_what_was_mapped(
        mode in 0usize..4,
        seed: u64,
        noise: bool,
        probes in prop::collection::vec(any::<u64>(), 50),
    ) {
        let mode = Mode::ALL[mode];
        let (memory, tables) = random_tables(mode, seed, noise);
        let leaves: Vec<_> = tables.leaves().collect();
        prop_assert!(leaves.len() > 5);
        for leaf in &leaves {
            for offset in [0, 1, leaf.size.bytes() / 2, leaf.size.bytes() - 1] {
                let found = translate(&memory, mode, ROOT, Gva(leaf.gva.0 + offset)).unwrap();
                let expected = Translation {
                    gpa: Gpa(leaf.gpa.0 + offset),
                    size: leaf.size,
                    rights: leaf.rights,
                    accessed: leaf.accessed,
                    dirty: leaf.dirty,
                };
                prop_assert_eq!(found, expected);
            }
        }
        // The oracle also agrees with the list of leaves elsewhere, and just outside every leaf.
        let edges = leaves
            .iter()
            .flat_map(|l| [l.gva.0.wrapping_sub(1), l.gva.0.wrapping_add(l.size.bytes())]);
        for gva in probes.into_iter().chain(edges) {
            let holds = |l: &&LeafTruth| gva >= l.gva.0 && gva - l.gva.0 < l.size.bytes();
            let expected = leaves.iter().find(holds).map(|l| l.gpa.0 + (gva - l.gva.0));
            prop_assert_eq!(translate(&memory, mode, ROOT, Gva(gva)).map(|t| t.gpa.0), expected);
        }
    }

    #[test]
    fn tables_have_one_frame_each(mode in 0usize..4, seed: u64) {
        let mode = Mode::ALL[mode];
        let (_, tables) = random_tables(mode, seed, false);
        let frames = tables.table_frames();
        let distinct: BTreeSet<Gfn> = frames.iter().map(|t| t.gfn).collect();
        prop_assert_eq!(distinct.len(), frames.len());
        prop_assert_eq!(frames.iter().filter(|t| t.level == mode.levels()).count(), 1);
        prop_assert!(frames.iter().all(|t| (1..=mode.levels()).contains(&t.level)));
    }
}

#[test]
fn rights_are_the_and_over_levels() {
    let (mut memory, mut tables) = (memory(), PageTables::new(Mode::FourLevel, ROOT));
    let mut frames = FrameRange::new(Gfn(2), 20);
    let at = (Gva(0x40_0000), Gpa(0x8000));
    tables
        .map(&mut memory, &mut frames, at, PageSize::Small, Attributes::accessed(Rights::ALL))
        .unwrap();
    for (level, limit) in [
        (1, Rights { write: false, ..Rights::ALL }),
        (2, Rights { exec: false, ..Rights::ALL }),
        (3, Rights { user: false, ..Rights::ALL }),
    ] {
        tables.restrict(&mut memory, at.0, level, limit).unwrap();
        let found = translate(&memory, Mode::FourLevel, ROOT, at.0).unwrap();
        assert_eq!(found.rights, tables.leaves().next().unwrap().rights);
        assert_eq!(found.rights.and(limit), found.rights);
    }
    assert_eq!(
        tables.leaves().next().unwrap().rights,
        Rights { user: false, write: false, exec: false }
    );
}

#[test]
fn isolation_hides_execution_from_the_kernels_copy_only() {
    let (mut memory, mut tables) = (memory(), PageTables::new(Mode::FourLevel, ROOT));
    let mut frames = FrameRange::new(Gfn(3), 20);
    let at = (Gva(0x40_0000), Gpa(0x8000));
    tables
        .map(&mut memory, &mut frames, at, PageSize::Small, Attributes::accessed(Rights::USER_TEXT))
        .unwrap();
    tables.isolate_lower_half(&mut memory, Gpa(0x2000)).unwrap();
    let rights = |root| translate(&memory, Mode::FourLevel, root, at.0).unwrap().rights;
    assert!(!rights(ROOT).exec);
    assert_eq!(rights(Gpa(0x2000)), Rights::USER_TEXT);
    assert_eq!(tables.leaves().next().unwrap().rights, Rights::USER_TEXT);
}

#[test]
fn the_upper_half_is_shared() {
    let mut memory = memory();
    let mut frames = FrameRange::new(Gfn(3), 20);
    for mode in [Mode::FourLevel, Mode::FiveLevel] {
        let root = frames.table_frame(mode.levels()).unwrap().gpa();
        let other = frames.table_frame(mode.levels()).unwrap().gpa();
        let (mut kernel, mut process) = (PageTables::new(mode, root), PageTables::new(mode, other));
        let at = (Gva(0xffff_ffff_8100_0000), Gpa(0x20_0000));
        let attributes = Attributes::kernel(Rights::KERNEL_TEXT);
        kernel.map(&mut memory, &mut frames, at, PageSize::Mega2, attributes).unwrap();
        process.share_upper_half(&mut memory, &kernel).unwrap();
        assert_eq!(translate(&memory, mode, other, at.0), translate(&memory, mode, root, at.0));
        assert!(translate(&memory, mode, other, at.0).is_some());
    }
}

#[test]
fn what_a_mode_cannot_express_is_refused() {
    let mut memory = memory();
    let mut frames = FrameRange::new(Gfn(2), 20);
    let mut try_map = |mode, gva, gpa, size| {
        let mut tables = PageTables::new(mode, ROOT);
        tables.map(
            &mut memory,
            &mut frames,
            (Gva(gva), Gpa(gpa)),
            size,
            Attributes::accessed(Rights::ALL),
        )
    };
    for (mode, gva, gpa, size) in [
        (Mode::Bits32, 0, 0, PageSize::Mega2),
        (Mode::Bits32, 1 << 32, 0, PageSize::Small),
        (Mode::Bits32, 0, 1 << 32, PageSize::Small),
        (Mode::Pae, 0, 0, PageSize::Giga),
        (Mode::Pae, 0, 0x1000, PageSize::Mega2),
        (Mode::FourLevel, 1 << 47, 0, PageSize::Small),
        (Mode::FiveLevel, 1 << 56, 0, PageSize::Small),
        (Mode::FiveLevel, 0, 1 << 52, PageSize::Small),
    ] {
        let result = try_map(mode, gva, gpa, size);
        assert!(matches!(result, Err(MockError::Unmappable { .. })), "{mode:?} {gva:#x} {gpa:#x}");
    }
    // PSE-36 reaches 40 bits.
    assert!(try_map(Mode::Bits32, 0, 0xff_ffc0_0000, PageSize::Mega4).is_ok());
}

/// Entries agree bit by bit with an independent crate.
#[test]
fn entries_agree_with_the_x86_64_crate() {
    use x86_64::structures::paging::page_table::PageTableFlags as F;
    let mut memory = memory();
    let mut frames = FrameRange::new(Gfn(2), 20);
    let mut tables = PageTables::new(Mode::FourLevel, ROOT);
    let attributes =
        Attributes { dirty: true, global: true, ..Attributes::accessed(Rights::USER_WRITE) };
    tables
        .map(&mut memory, &mut frames, (Gva(0), Gpa(0x4000_0000)), PageSize::Giga, attributes)
        .unwrap();
    let entry = |at| crate::ram::read_u64(&memory, Gpa(at)).unwrap();
    let table = F::PRESENT | F::WRITABLE | F::USER_ACCESSIBLE | F::ACCESSED;
    assert_eq!(entry(0x1000), 0x2000 | table.bits());
    let leaf = table | F::DIRTY | F::GLOBAL | F::HUGE_PAGE | F::NO_EXECUTE;
    assert_eq!(entry(0x2000), 0x4000_0000 | leaf.bits());
}
