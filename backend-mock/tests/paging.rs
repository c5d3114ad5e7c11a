//! The walker finds in page tables of every mode what the builder mapped, and agrees with the
//! oracle.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use kaleidoscope_core::addr::{Gfn, Gpa, Gva};
use kaleidoscope_core::internals::paging as core;
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use kaleidoscope_mock::paging::{
    Attributes, FrameRange, Mode, PageTables, Rights, TableFrame, translate,
};
use kaleidoscope_mock::{MockError, Rng};
use proptest::prelude::*;
use std::collections::BTreeSet;

const ROOT: Gpa = Gpa(0x1000);

fn spec(mode: Mode) -> core::PagingSpec {
    match mode {
        Mode::Bits32 => core::PagingSpec::X86_32,
        Mode::Pae => core::PagingSpec::X86_PAE,
        Mode::FourLevel => core::PagingSpec::X86_64_4LEVEL,
        Mode::FiveLevel => core::PagingSpec::X86_64_5LEVEL,
    }
}

/// Random mappings, with random values in ignored bits.
fn random_tables(mode: Mode, seed: u64) -> (VecMemory, PageTables) {
    let mut memory = VecMemory::zeroed(MemoryLayout::contiguous(1 << 20).unwrap());
    let mut rng = Rng::new(seed);
    let mut tables = PageTables::new(mode, ROOT).with_noise(Rng::new(!seed));
    let mut frames = FrameRange::new(Gfn(2), 254);
    let spec = spec(mode);
    for _ in 0..50 {
        let size = mode.page_sizes()[rng.index(mode.page_sizes().len())];
        let raw = rng.below(2) << 56 | rng.below(2) << 47 | rng.below(3) << 39 | rng.below(4) << 30;
        let raw = spec.canonical(raw | rng.below(3) << 21 | rng.below(512) << 12).0;
        let gva = Gva(raw & !(size.bytes() - 1));
        let gpa = Gpa(rng.below(mode.physical_limit(size)) & !(size.bytes() - 1));
        let mut bit = || rng.one_in(2);
        let rights = Rights { user: bit(), write: bit(), exec: bit() };
        // Linux sets NX above user mappings only for page-table isolation, so the walker ignores it
        // in the lower half of the root.
        let upper = Rights { user: bit(), write: bit(), exec: gva.0 >> 63 == 0 || bit() };
        let attributes = Attributes { rights, accessed: bit(), dirty: bit(), global: bit() };
        match tables.map_under(&mut memory, &mut frames, (gva, gpa), size, attributes, upper) {
            Ok(()) | Err(MockError::Mapped { .. } | MockError::OutOfFrames { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    (memory, tables)
}

#[derive(Default)]
struct Collector {
    leaves: Vec<core::Leaf>,
    tables: BTreeSet<(usize, Gfn)>,
}

impl core::Visitor for Collector {
    fn leaf(&mut self, leaf: &core::Leaf) {
        self.leaves.push(*leaf);
    }

    fn table(&mut self, gpa: Gpa, depth: usize, _gva: Gva) {
        self.tables.insert((depth, gpa.gfn()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_walk_finds_every_leaf_and_table(mode in 0usize..4, seed: u64) {
        let mode = Mode::ALL[mode];
        let spec = spec(mode);
        let (memory, tables) = random_tables(mode, seed);
        let mut found = Collector::default();
        let mut budget = core::TableBudget::new(10_000);
        for range in [core::GvaRange::user_half(&spec), core::GvaRange::kernel_half(&spec)] {
            let report = core::walk(&memory, &spec, ROOT, range, &mut budget, &mut found);
            prop_assert_eq!(report.unreadable, 0);
            prop_assert!(!report.cut);
        }
        let known: Vec<core::Leaf> = tables
            .leaves()
            .map(|l| core::Leaf {
                gva: l.gva,
                gpa: l.gpa,
                bytes: l.size.bytes(),
                rights: core::Rights {
                    user: l.rights.user,
                    write: l.rights.write,
                    execute: l.rights.exec,
                },
                accessed: l.accessed,
                dirty: l.dirty,
            })
            .collect();
        prop_assert_eq!(found.leaves, known);
        let depth = |t: &TableFrame| (usize::from(mode.levels() - t.level), t.gfn);
        let built: BTreeSet<_> = tables.table_frames().iter().map(depth).collect();
        prop_assert_eq!(found.tables, built);
    }

    #[test]
    fn a_translation_is_the_oracles(
        mode in 0usize..4,
        seed: u64,
        probes in prop::collection::vec(any::<u64>(), 50),
    ) {
        let mode = Mode::ALL[mode];
        let spec = spec(mode);
        let (memory, tables) = random_tables(mode, seed);
        let edges = tables.leaves().flat_map(|l| {
            let (first, last) = (l.gva.0, l.gva.0 + (l.size.bytes() - 1));
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
        });
        for gva in probes.into_iter().chain(edges).map(Gva) {
            let found = core::translate(&memory, &spec, ROOT, gva).gpa();
            prop_assert_eq!(found, translate(&memory, mode, ROOT, gva).map(|t| t.gpa), "{}", gva);
        }
    }
}
