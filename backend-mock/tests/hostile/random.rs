//! Random damage to synthetic guests.

use crate::damage::{damage, structures};
use crate::target::Target;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use kaleidoscope_mock::{PatchedMemory, Rng};

/// Number of damaged copies of each guest.
const RUNS: u64 = 60;

fn attack(style: KernelStyle) {
    let guest = GuestBuilder::new(style).seed(3).ram_bytes(32 << 20).build().unwrap();
    let target = Target::of(&format!("{style:?}"), &guest);
    let structures = structures(&target);
    assert!(structures.len() > 8, "{:?}", structures.iter().map(|p| p.name).collect::<Vec<_>>());
    for run in 0..RUNS {
        let mut rng = Rng::new(run);
        let group = &structures[usize::try_from(run).unwrap() % structures.len()];
        let mut memory = PatchedMemory::new(&guest.memory);
        damage(&mut memory, group, &mut rng);
        target.color_damaged(&format!("run {run} on {}", group.name), &memory, false);
    }
}

#[test]
fn linux_5_10() {
    attack(KernelStyle::V5_10);
}

#[test]
fn linux_6_1() {
    attack(KernelStyle::V6_1);
}

#[test]
fn linux_6_12() {
    attack(KernelStyle::V6_12);
}

#[test]
fn linux_7_2() {
    attack(KernelStyle::V7_2);
}
