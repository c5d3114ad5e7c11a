//! Memory that a virtio-mem device has not plugged in is offline; other memory without a frame
//! table is unknown.

use super::linux;
use kaleidoscope_core::addr::Gfn;
use kaleidoscope_core::color::{Color, FrameKind};
use kaleidoscope_core::coloring::Coloring;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};
use std::ops::Range;

fn guest(style: KernelStyle) -> MockGuest {
    let base = GuestBuilder::new(style).ram_bytes(48 << 20).seed(61);
    base.pci_hole_at(32 << 20).virtio_mem(300 << 12).build().unwrap()
}

/// Number of frames of a range with each of two colors.
fn colors(coloring: &Coloring, frames: &Range<Gfn>, colors: [Color; 2]) -> [usize; 2] {
    let inside = |color| move |frame: &Color| *frame == color;
    let found: Vec<Color> = coloring
        .map
        .iter()
        .filter(|(_, gfn, _)| frames.contains(gfn))
        .map(|(_, _, frame)| frame.color)
        .collect();
    colors.map(|color| found.iter().copied().filter(inside(color)).count())
}

#[test]
fn what_the_device_keeps_is_offline() {
    for style in KernelStyle::ALL {
        let guest = guest(style);
        for registers in [guest.registers.as_slice(), &[]] {
            let found = linux(&guest.memory, registers);
            let both = [Color::Offline, Color::Unknown];
            assert_eq!(colors(&found, &guest.kept, both), [300, 0], "{style:?}");
            // The NVDIMM has no frame table either, and is not zero.
            assert_eq!(colors(&found, &guest.nvdimm, both), [0, 16], "{style:?}");
            let [note] = found.notes() else { panic!("{style:?}: {:?}", found.notes()) };
            let first = guest.nvdimm.start;
            let text = format!("16 frames without a readable record, the first at frame {first}");
            assert_eq!(note.text, text, "{style:?}");
            for (index, gfn, frame) in found.map.iter() {
                let truth = guest.truth.kind(index);
                assert!(frame.kind == truth || guest.nvdimm.contains(&gfn), "{style:?} {gfn}");
            }
        }
    }
}

/// Without the guest's resource tree, memory without a frame table is unknown.
#[test]
fn without_its_resources_nothing_is_offline() {
    let mut guest = guest(KernelStyle::V6_12);
    let unknown = |guest: &MockGuest| {
        let found = linux(&guest.memory, &guest.registers);
        colors(&found, &guest.kept, [Color::Offline, Color::Unknown])
    };
    let root = guest.physical(guest.symbol("iomem_resource").unwrap()).unwrap();
    let (saved, mut changed) = (guest.memory.clone(), guest.memory.clone());
    // A resource tree that leads back to its root, and a truncated one: neither hangs nor is used.
    let address = guest.symbol("iomem_resource").unwrap().0;
    let child = guest.offset("resource", "child").unwrap();
    for pointer in [address, 0, 0x10] {
        changed.write(root.checked_add(child).unwrap(), &pointer.to_le_bytes()).unwrap();
        guest.memory = changed.clone();
        assert_eq!(unknown(&guest), [0, 300], "{pointer:#x}");
    }
    guest.memory = saved;
    guest.wipe_btf().unwrap();
    assert_eq!(unknown(&guest), [0, 300]);
}

/// Pages of the balloon and of the device have the same kind, and share one region.
#[test]
fn offline_frames_are_one_region() {
    let guest = guest(KernelStyle::V7_2);
    let found = linux(&guest.memory, &guest.registers);
    let offline = found.map.iter().filter(|(_, _, frame)| frame.kind == FrameKind::Offline);
    let regions: std::collections::BTreeSet<_> =
        offline.map(|(_, _, frame)| frame.region).collect();
    assert_eq!(regions.len(), 1);
}
