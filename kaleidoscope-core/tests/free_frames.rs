//! Whether free frames may be filled with zeros, on synthetic guests with each of Linux's
//! page-clearing configurations.

#![expect(
    clippy::unwrap_used,
    reason = "a synthetic guest that cannot be built or colored fails the test"
)]

use kaleidoscope_core::clone::{Descriptor, FreeFrames, Verdict, trust};
use kaleidoscope_core::color::{Color, ColorMap};
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::guest_os::NoteKind;
use kaleidoscope_core::manifest::{ImageIdentity, Limits, Manifest};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_mock::linux::{Damage, GuestBuilder, KernelStyle, MockGuest};

/// A guest whose n-th free frame holds `fill(n)`, and its colors.
fn guest(style: KernelStyle, fill: impl Fn(usize) -> [u8; 4096]) -> (MockGuest, ColorMap) {
    let builder = GuestBuilder::new(style).seed(3).ram_bytes(32 << 20).pci_hole_at(16 << 20);
    let mut guest = builder.build().unwrap();
    let options = ColoringOptions::default().registers(guest.registers.clone());
    let map = color(&guest.memory, &options).unwrap().map;
    let free = map.iter().filter(|(_, _, frame)| frame.color == Color::Free);
    for (n, (_, gfn, _)) in free.enumerate() {
        guest.memory.write(gfn.gpa(), &fill(n)).unwrap();
    }
    // The contents of free frames do not affect their color.
    assert_eq!(color(&guest.memory, &options).unwrap().map, map);
    (guest, map)
}

/// Data left by a process: neither zero nor the poison.
fn leftovers(n: usize) -> [u8; 4096] {
    std::array::from_fn(|i| u8::try_from((i * 7 + n) % 251).unwrap())
}

#[test]
fn zeros_are_exact_where_the_kernel_clears_pages_it_frees() {
    for style in KernelStyle::ALL {
        let (guest, map) = guest(style, |_| [0; 4096]);
        let seen = trust(&guest.memory, &map).unwrap();
        assert_eq!((seen.verdict, seen.free_frames()), (Verdict::Zero, FreeFrames::Zero));
        assert!(seen.sampled > 500 && seen.sampled <= 1024, "{seen:?}");
        assert_eq!(seen.zero, seen.sampled);
        let free = map.colors().iter().filter(|c| **c == Color::Free).count();
        assert_eq!(seen.free as usize, free);
    }
}

#[test]
fn poisoned_pages_are_not_trusted() {
    for style in KernelStyle::ALL {
        let (guest, map) = guest(style, |_| [0xaa; 4096]);
        let seen = trust(&guest.memory, &map).unwrap();
        assert_eq!((seen.verdict, seen.free_frames()), (Verdict::Poisoned, FreeFrames::Fetch));
        assert_eq!(seen.poisoned, seen.sampled);
    }
}

/// Every 16th page is poisoned, and has a stray write: enough to reject.
#[test]
fn a_few_poisoned_pages_are_enough() {
    let (guest, map) = guest(KernelStyle::V6_1, |n| match n % 16 {
        0 => std::array::from_fn(|i| if i < 64 { 1 } else { 0xaa }),
        _ => [0; 4096],
    });
    let seen = trust(&guest.memory, &map).unwrap();
    assert_eq!((seen.verdict, seen.free_frames()), (Verdict::Poisoned, FreeFrames::Fetch));
    assert!(seen.poisoned < seen.sampled, "{seen:?}");
}

#[test]
fn leftover_data_is_reported() {
    for style in KernelStyle::ALL {
        let fill = |n| if n % 3 == 0 { [0; 4096] } else { leftovers(n) };
        let (guest, map) = guest(style, fill);
        let seen = trust(&guest.memory, &map).unwrap();
        assert_eq!((seen.verdict, seen.free_frames()), (Verdict::Leftovers, FreeFrames::Zero));
        assert!(seen.zero > 0 && seen.zero < seen.sampled && seen.poisoned == 0, "{seen:?}");
        assert!(seen.to_string().contains("nobody relies on"), "{seen}");
    }
}

/// Without free frames, zeros are not trusted.
#[test]
fn nothing_seen_is_not_trusted() {
    let (guest, map) = guest(KernelStyle::V6_12, |_| [0; 4096]);
    let frames = map.iter().map(|(_, _, mut frame)| {
        if frame.color == Color::Free {
            frame.color = Color::Unknown;
        }
        frame
    });
    let layout = guest.memory.layout().clone();
    let map = ColorMap::new(layout, map.kernel().clone(), frames, map.regions().to_vec()).unwrap();
    let seen = trust(&guest.memory, &map).unwrap();
    assert_eq!((seen.verdict, seen.free_frames()), (Verdict::Unknown, FreeFrames::Fetch));
}

/// Guests with contradictory structures are not trusted, however harmless their free frames look,
/// and a manifest or a descriptor tells its reader so.
#[test]
fn contradictions_are_not_trusted() {
    for style in KernelStyle::ALL {
        for damage in [Damage::BlockOrder, Damage::TaskCycle, Damage::TaskWild] {
            let mut guest = GuestBuilder::new(style).seed(3).ram_bytes(32 << 20).build().unwrap();
            guest.damage(damage).unwrap();
            let options = ColoringOptions::default().registers(guest.registers.clone());
            let coloring = color(&guest.memory, &options).unwrap();
            let name = format!("{style:?} {damage:?}: {:?}", coloring.notes());
            assert!(coloring.notes().iter().any(|n| n.kind == NoteKind::Contradiction), "{name}");
            let seen = trust(&guest.memory, &coloring.map).unwrap();
            assert_eq!(seen.verdict, Verdict::Contradicted, "{name}");
            assert_eq!(seen.free_frames(), FreeFrames::Fetch, "{name}");
            assert_eq!(FreeFrames::Zero.allowed_by(&coloring.map), FreeFrames::Fetch, "{name}");

            let identity = ImageIdentity::of(&guest.memory, &coloring.map).unwrap();
            let manifest = Manifest::new(coloring.map, identity);
            let read = manifest.to_bytes().unwrap();
            let read = Manifest::from_bytes(&read, &Limits::default()).unwrap();
            assert_eq!(read, manifest, "{name}");
            let descriptor =
                Descriptor::of_manifest(read).unwrap().with_free_frames(FreeFrames::Zero);
            assert_eq!(descriptor.free_frames(), FreeFrames::Fetch, "{name}");
        }
    }
}
