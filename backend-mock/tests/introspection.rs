//! Introspection of synthetic guests finds what is true of them, in every layer of evidence.

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::color::{Color, FrameKind};
use kaleidoscope_core::coloring::{Coloring, Options, color};
use kaleidoscope_core::registers::VcpuRegisters;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};
use std::collections::BTreeMap;

fn registers(guest: &MockGuest) -> Vec<VcpuRegisters> {
    let one = |(cpu, r): (u32, &kaleidoscope_mock::linux::Registers)| VcpuRegisters {
        cpu,
        rip: r.rip.0,
        cr0: Some(r.cr0),
        cr3: Some(r.cr3),
        cr4: Some(r.cr4),
        efer: Some(r.efer),
        gs_base: Some(r.gs_base.0),
        ..VcpuRegisters::default()
    };
    (0..).zip(&guest.registers).map(one).collect()
}

/// Frames by what is true of them and what introspection says, where the two differ.
fn differences(guest: &MockGuest, coloring: &Coloring) -> BTreeMap<String, (u32, FrameIndex)> {
    let mut out: BTreeMap<String, (u32, FrameIndex)> = BTreeMap::new();
    for (index, gfn, frame) in coloring.map.iter() {
        let (kind, color) = (guest.truth.kind(index), guest.truth.color(index));
        if (frame.kind, frame.color) != (kind, color) {
            let role = guest.truth.role(gfn).unwrap();
            let role = format!("{role:?}").split(' ').next().unwrap_or_default().to_owned();
            let text = format!("{role}: {kind}/{color} found {}/{}", frame.kind, frame.color);
            out.entry(text).or_insert((0, index)).0 += 1;
        }
    }
    out
}

#[test]
fn report() {
    for style in KernelStyle::ALL {
        for (name, builder) in [
            ("plain", GuestBuilder::new(style)),
            ("5-level", GuestBuilder::new(style).five_level(true)),
            ("isolated", GuestBuilder::new(style).page_table_isolation(true)),
            ("hole", GuestBuilder::new(style).pci_hole_at(40 << 20).cpus(3)),
        ] {
            for with_registers in [true, false] {
                let mut guest = builder.clone().seed(5).build().unwrap();
                let registers = if with_registers { registers(&guest) } else { vec![] };
                for wiped in ["nothing", "kallsyms", "btf"] {
                    match wiped {
                        "kallsyms" => guest.wipe_kallsyms().unwrap(),
                        "btf" => guest.wipe_btf().unwrap(),
                        _ => {}
                    }
                    let options = Options { registers: registers.clone(), ..Options::default() };
                    let coloring = match color(&guest.memory, &options) {
                        Ok(c) => c,
                        Err(e) => {
                            println!(
                                "== {style:?} {name} registers {with_registers} wiped {wiped}: {e}"
                            );
                            continue;
                        }
                    };
                    let differences = differences(&guest, &coloring);
                    println!(
                        "== {style:?} {name} registers {with_registers} wiped {wiped}: {:?} notes {:?}",
                        coloring.map.kernel(),
                        coloring.notes()
                    );
                    for (text, (count, index)) in differences.iter().take(12) {
                        println!("   {count:6} {text} (first {index})");
                    }
                }
            }
        }
    }
    let _ = (Color::Free, FrameKind::Free);
}
