//! Guests with memory encryption bits in their page tables are colored like those without.

use super::{assert_same, linux};
use kaleidoscope_core::addr::Gva;
use kaleidoscope_core::coloring::{Coloring, ColoringOptions, color_by_page_tables};
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};

/// Which entries have the bit set: encrypted pages (AMD) or shared ones (Intel).
type Kind = fn(GuestBuilder, u32) -> GuestBuilder;

const KINDS: [(&str, Kind); 2] =
    [("encrypted", GuestBuilder::memory_encryption), ("shared", GuestBuilder::shared_bit)];

fn shapes(style: KernelStyle) -> Vec<(&'static str, GuestBuilder)> {
    let base = GuestBuilder::new(style).ram_bytes(32 << 20).seed(11);
    vec![
        ("4-level", base.clone()),
        ("5-level", base.clone().five_level(true)),
        ("isolated", base.clone().page_table_isolation(true)),
        ("isolated 5-level", base.clone().page_table_isolation(true).five_level(true)),
        ("hole", base.pci_hole_at(24 << 20).cpus(3)),
    ]
}

/// Like [`assert_same`], and compares facts and notes as well.
#[track_caller]
fn assert_all_same(name: &str, found: &Coloring, plain: &Coloring) {
    assert_same(name, found, plain);
    assert!(found.facts.frames == plain.facts.frames, "{name}");
    assert_eq!(found.notes(), plain.notes(), "{name}");
}

#[test]
fn linux_is_colored_as_without_the_bit() {
    for style in KernelStyle::ALL {
        for (shape, builder) in shapes(style) {
            let guest = builder.build().unwrap();
            let [with, without] =
                [guest.registers.as_slice(), &[]].map(|r| linux(&guest.memory, r));
            for (kind, set) in KINDS {
                for bit in [47, 51] {
                    let encrypted = set(builder.clone(), bit).build().unwrap();
                    assert!(encrypted.memory.bytes() != guest.memory.bytes());
                    let name = format!("{style:?} {shape} {kind} {bit}");
                    let found = linux(&encrypted.memory, &encrypted.registers);
                    assert_all_same(&format!("{name} registers"), &found, &with);
                    assert_all_same(&name, &linux(&encrypted.memory, &[]), &without);
                }
            }
        }
    }
}

/// The bit is found from registers alone: CR3 may be masked, and the note may be missing.
#[test]
fn the_bit_is_found_without_the_note_and_in_plain_cr3() {
    for style in KernelStyle::ALL {
        let builder = GuestBuilder::new(style).ram_bytes(32 << 20).seed(12);
        let colors = |builder: &GuestBuilder, plain_cr3: bool| {
            let mut guest = builder.build().unwrap();
            guest.wipe_vmcoreinfo().unwrap();
            for registers in guest.registers.iter_mut().filter(|_| plain_cr3) {
                registers.cr3 = registers.cr3.map(|cr3| cr3 & !(1 << 47));
            }
            linux(&guest.memory, &guest.registers)
        };
        let plain = colors(&builder, false);
        let encrypted = builder.memory_encryption(47);
        assert_all_same(&format!("{style:?}"), &colors(&encrypted, false), &plain);
        assert_all_same(&format!("{style:?} plain CR3"), &colors(&encrypted, true), &plain);
    }
}

#[test]
fn any_system_is_colored_as_without_the_bit() {
    for (shape, builder) in shapes(KernelStyle::V6_12) {
        let by_tables = |guest: &MockGuest| {
            let options = ColoringOptions::default().registers(guest.registers.clone());
            color_by_page_tables(&guest.memory, &options).unwrap()
        };
        let plain = by_tables(&builder.build().unwrap());
        assert!(!plain.processes().is_empty());
        for (kind, set) in KINDS {
            let found = by_tables(&set(builder.clone(), 51).build().unwrap());
            assert_all_same(&format!("{shape} {kind}"), &found, &plain);
        }
    }
}

/// The bit must lie above all RAM addresses.
#[test]
fn bits_of_addresses_are_refused() {
    let base = GuestBuilder::new(KernelStyle::V6_1).ram_bytes(32 << 20);
    for bit in [20, 31, 52, 63] {
        assert!(base.clone().memory_encryption(bit).build().is_err(), "{bit}");
    }
    let guest = base.memory_encryption(32).build().unwrap();
    let root = guest.symbol("init_top_pgt").unwrap_or(Gva(0));
    assert_eq!(guest.physical(root), Some(guest.truth.kernel.root));
}
