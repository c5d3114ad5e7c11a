//! A small color map for tests.

use kaleidoscope_core::addr::Gfn;
use kaleidoscope_core::color::{
    Color, ColorMap, Frame, FrameKind, KernelIdentity, Order, Region, RegionId, Temperature,
};
use kaleidoscope_core::memory::MemoryLayout;

/// 40 frames in two RAM regions (0 to 23 and 256 to 271): free memory on both sides of the hole, a
/// file with code and cached pages, a file without a name, a slab cache, a process, and one frame
/// that is unknown.
pub(crate) fn small() -> ColorMap {
    let layout = MemoryLayout::new(&[(Gfn(0).gpa(), 0x18000), (Gfn(256).gpa(), 0x10000)]).unwrap();
    let kernel = KernelIdentity {
        os: "linux".into(),
        release: "6.1.0-test-amd64".into(),
        banner: "Linux version 6.1.0-test-amd64".into(),
        build_id: "00ff".into(),
        paging: "x86-64 4-level".into(),
    };
    let regions = vec![
        Region::new(
            FrameKind::File,
            Order::FileOffset,
            "ext4:65024:12:/usr/bin/perl, \"quoted\": too",
        ),
        Region::new(FrameKind::File, Order::FileOffset, "ext4:65024:77:"),
        Region::new(FrameKind::Slab, Order::KernelAddress, "dentry"),
        Region::new(FrameKind::Anonymous, Order::UserAddress, "perl[812]"),
    ];
    let frame = |kind, color, region: u32, position, temperature| {
        let region = (region < 4).then_some(RegionId(region));
        Frame { kind, color, region, position, temperature }
    };
    let hot = Temperature::ACCESSED | Temperature::ACTIVE;
    let cold = Temperature::NONE;
    let frames = (0..40u64).map(|i| match i {
        0 => frame(FrameKind::Unknown, Color::Unknown, 9, 0, cold),
        1..6 => frame(FrameKind::Free, Color::Free, 9, 0, cold),
        6..12 => frame(FrameKind::File, Color::FileCode, 0, i - 6, hot),
        12..15 => frame(FrameKind::File, Color::FileCache, 0, i - 6, cold),
        15..18 => frame(FrameKind::File, Color::FileCache, 1, 20 - i, cold),
        18..22 => frame(FrameKind::Free, Color::Free, 9, 0, cold),
        22..24 => frame(FrameKind::Slab, Color::Slab, 2, 0x880_0000 + i, cold),
        24..27 => frame(FrameKind::Free, Color::Free, 9, 0, cold),
        27..37 => frame(FrameKind::Anonymous, Color::Anonymous, 3, 0x5_5555 + i, hot),
        _ => frame(FrameKind::Slab, Color::Slab, 2, 0x880_00e8 + i, cold),
    });
    ColorMap::new(layout, kernel, frames, regions).unwrap()
}
