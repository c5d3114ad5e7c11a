//! Two ways through the same tables: every page that a walk finds is where a single translation leads, and a translation leads
//! nowhere that the walk has not been.
#![no_main]

use kaleidoscope_core::addr::{Gpa, Gva};
use kaleidoscope_core::internals::paging::{
    GvaRange, KernelSpace, Leaf, PagingSpec, TableBudget, Translation, Visitor, translate, walk,
};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use kaleidoscope_fuzz::Input;
use libfuzzer_sys::fuzz_target;

const SPECS: [PagingSpec; 4] =
    [PagingSpec::X86_64_4LEVEL, PagingSpec::X86_64_5LEVEL, PagingSpec::X86_PAE, PagingSpec::X86_32];

const TABLES: u64 = 96;

#[derive(Default)]
struct Leaves(Vec<Leaf>);

impl Visitor for Leaves {
    fn leaf(&mut self, leaf: &Leaf) {
        self.0.push(*leaf);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let spec = SPECS[usize::from(input.u8()) % SPECS.len()];
    let low = u64::from(input.u8() % 6) + 1;
    let root = Gpa(input.u16().into());
    let probes = [input.u64(), input.u64(), input.u64()];
    // Eight frames, some of them behind a hole.
    let regions = [(Gpa(0), low << 12), (Gpa(0x8000), (8 - low) << 12)];
    let layout = MemoryLayout::new(&regions).expect("two regions that do not overlap");
    // Tables are sparse: each ten bytes of input are an entry's place and its value.
    let mut memory = VecMemory::zeroed(layout);
    while !input.is_empty() {
        let at = usize::from(input.u16()) % (8 * 512) * 8;
        let entry = input.u64().to_le_bytes();
        memory.bytes_mut()[at..at + 8].copy_from_slice(&entry);
    }
    for range in [GvaRange::user_half(&spec), GvaRange::kernel_half(&spec)] {
        let mut budget = TableBudget::new(TABLES);
        let mut leaves = Leaves::default();
        let report = walk(&memory, &spec, root, range, &mut budget, &mut leaves);
        assert!(report.tables + report.unreadable + budget.left() <= TABLES);
        assert!(leaves.0.is_sorted_by(|a, b| a.gva < b.gva));
        for leaf in &leaves.0 {
            let found = translate(&memory, &spec, root, leaf.gva);
            assert_eq!(
                found,
                Translation::Mapped { gpa: leaf.gpa, page_bytes: leaf.bytes },
                "{leaf:?}"
            );
        }
        let own: Vec<Gva> = probes.iter().map(|&p| spec.canonical(p)).collect();
        let near = leaves
            .0
            .iter()
            .take(8)
            .flat_map(|l| [-1, 1, l.bytes as i64].map(|d| l.gva.0.wrapping_add_signed(d)));
        let near: Vec<Gva> = near.map(|gva| spec.canonical(gva)).collect();
        for gva in own.into_iter().chain(near).filter(|&g| range.first <= g && g <= range.last) {
            let by_walk = leaves.0.iter().find(|l| l.gva <= gva && gva.0 - l.gva.0 < l.bytes);
            let by_walk = by_walk.map(|l| Gpa(l.gpa.0 + (gva.0 - l.gva.0)));
            let by_translation = translate(&memory, &spec, root, gva).gpa();
            assert!(
                report.cut || by_walk == by_translation,
                "{gva}: {by_walk:?}, {by_translation:?}"
            );
        }
    }
    let space = KernelSpace::read(&memory, &spec, root, &mut TableBudget::new(TABLES));
    for run in space.runs() {
        assert_eq!(space.translate(run.gva), Some((run.gpa, run.bytes)));
        assert_eq!(space.translate(run.last()).map(|t| t.1), Some(1));
        assert_eq!(translate(&memory, &spec, root, run.gva).gpa(), Some(run.gpa));
    }
});
