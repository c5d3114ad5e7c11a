//! Whether free frames may be filled with zeros, on synthetic guests with each of Linux's
//! page-clearing configurations.

#![expect(
    clippy::unwrap_used,
    reason = "a synthetic guest that cannot be built or colored fails the test"
)]

use kaleidoscope_core::clone::{
    Descriptor, DescriptorLimits, FreeFrames, LocalSource, Verdict, trust,
};
use kaleidoscope_core::color::{Color, ColorMap};
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::guest_os::NoteKind;
use kaleidoscope_core::manifest::{ImageIdentity, Limits, Manifest};
use kaleidoscope_core::memory::{GuestMemory, SnapshotId, VecMemory};
use kaleidoscope_mock::linux::{Damage, GuestBuilder, KernelStyle, MockGuest};
use std::sync::Arc;

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
    // The contents of free frames do not affect their color, only whether they are trusted.
    let filled = color(&guest.memory, &options).unwrap().map;
    assert!(filled.iter().eq(map.iter()));
    let seen = trust(&guest.memory, &filled).unwrap();
    assert_eq!(filled.has_trusted_free_frames(), seen.free_frames() == FreeFrames::Zero);
    (guest, filled)
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
            assert!(!coloring.map.has_trusted_free_frames(), "{name}");
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

/// What an engine does by default with this map and this memory.
fn default_of(map: &ColorMap, memory: &VecMemory) -> FreeFrames {
    FreeFrames::Auto.for_source(map, &LocalSource::new(Arc::new(memory.clone())))
}

/// Zeros are the default only for the very memory that was colored: a map of another snapshot, even
/// of the same guest a moment later, may call a frame free that is in use.
#[test]
fn only_the_snapshot_that_was_colored_is_trusted() {
    let (mut guest, map) = guest(KernelStyle::V6_1, leftovers);
    assert_eq!(default_of(&map, &guest.memory), FreeFrames::Zero);
    assert_eq!(FreeFrames::Fetch.allowed_by(&map), FreeFrames::Fetch);
    let before = guest.memory.clone();
    guest.memory.write(guest.memory.layout().regions()[0].start.gpa(), &[1]).unwrap();
    assert_eq!(default_of(&map, &guest.memory), FreeFrames::Fetch, "it has changed");
    assert_eq!(default_of(&map, &before), FreeFrames::Zero);
    // The embedder's word counts without a check.
    let source = LocalSource::new(Arc::new(guest.memory.clone()));
    assert_eq!(FreeFrames::Zero.for_source(&map, &source), FreeFrames::Zero);
    // A map that was put together from records says nothing of free frames.
    let frames: Vec<_> = map.iter().map(|(_, _, frame)| frame).collect();
    let layout = map.layout().clone();
    let copy = ColorMap::new(layout, map.kernel().clone(), frames, map.regions().to_vec()).unwrap();
    assert_eq!(default_of(&copy, &before), FreeFrames::Fetch);
    assert_eq!(FreeFrames::Auto.allowed_by(&copy), FreeFrames::Fetch);
}

/// A manifest is believed once it was compared with the image, and no longer than that.
#[test]
fn manifests_are_trusted_once_they_are_verified() {
    let (guest, map) = guest(KernelStyle::V6_12, leftovers);
    let identity = ImageIdentity::of(&guest.memory, &map).unwrap();
    let written = Manifest::new(map.clone(), identity);
    let bytes = written.to_bytes().unwrap();
    let mut read = Manifest::from_bytes(&bytes, &Limits::default()).unwrap();
    assert_eq!(read, written);
    assert_eq!(read.to_bytes().unwrap(), bytes);
    assert!(!read.map.has_trusted_free_frames(), "before it is verified");
    assert_eq!(default_of(&read.map, &guest.memory), FreeFrames::Fetch);
    let unverified = Descriptor::of_manifest(read.clone()).unwrap();
    assert_eq!(unverified.free_frames(), FreeFrames::Fetch);

    read.verify(&guest.memory).unwrap();
    assert!(read.map.has_trusted_free_frames());
    assert_eq!(default_of(&read.map, &guest.memory), FreeFrames::Zero);
    assert_eq!(Descriptor::of_manifest(read.clone()).unwrap().free_frames(), FreeFrames::Zero);
    assert_eq!(read.to_bytes().unwrap(), bytes);

    let mut other = guest.memory.clone();
    other.write(guest.memory.layout().regions()[0].start.gpa(), &[7; 4096]).unwrap();
    read.verify(&other).unwrap_err();
    assert!(!read.map.has_trusted_free_frames(), "no longer");
    assert_eq!(default_of(&read.map, &guest.memory), FreeFrames::Fetch);
}

/// A manifest without the key, as earlier versions wrote it, stays untrusted.
#[test]
fn manifests_without_the_key_are_not_trusted() {
    let (guest, map) = guest(KernelStyle::V6_12, |_| [0xaa; 4096]);
    let identity = ImageIdentity::of(&guest.memory, &map).unwrap();
    let bytes = Manifest::new(map, identity).to_bytes().unwrap();
    let mut read = Manifest::from_bytes(&bytes, &Limits::default()).unwrap();
    read.verify(&guest.memory).unwrap();
    assert!(!read.map.has_trusted_free_frames());
}

/// A clone of a page server does what the server decided, whatever the coloring found.
#[test]
fn descriptors_say_what_the_server_decided() {
    let fills: [fn(usize) -> [u8; 4096]; 2] = [leftovers, |_| [0xaa; 4096]];
    for fill in fills {
        let (guest, map) = guest(KernelStyle::V6_1, fill);
        let descriptor = Descriptor::of(&guest.memory, Some(map.clone())).unwrap();
        assert_eq!(descriptor.free_frames(), FreeFrames::Auto.allowed_by(&map));
        for decided in [FreeFrames::Zero, FreeFrames::Fetch] {
            let bytes = descriptor.clone().with_free_frames(decided).to_bytes().unwrap();
            let limits = DescriptorLimits::for_frames(map.layout().frames());
            let read = Descriptor::from_bytes(&bytes, &limits).unwrap();
            assert_eq!(read.free_frames(), decided);
            assert_eq!(read.to_bytes().unwrap(), bytes);
            let map = read.map().unwrap();
            let server = SnapshotId::of_image(read.identity().digest);
            assert_eq!(map.trusts_free_frames_of(server), decided == FreeFrames::Zero);
            assert!(!map.trusts_free_frames_of(SnapshotId::of_image([9; 32])));
            // The image here was not compared with the server's.
            assert_eq!(default_of(map, &guest.memory), FreeFrames::Fetch);
        }
    }
}

/// A map of one snapshot makes no descriptor of another one whose frames are zeroed.
#[test]
fn a_descriptor_of_another_snapshot_fetches() {
    let (mut guest, map) = guest(KernelStyle::V6_1, leftovers);
    guest.memory.write(guest.memory.layout().regions()[0].start.gpa(), &[7]).unwrap();
    let descriptor = Descriptor::of(&guest.memory, Some(map)).unwrap();
    assert_eq!(descriptor.free_frames(), FreeFrames::Fetch);
    let uncolored = Descriptor::of(&guest.memory, None).unwrap();
    let uncolored = uncolored.with_free_frames(FreeFrames::Auto);
    assert_eq!(uncolored.free_frames(), FreeFrames::Fetch);
}
