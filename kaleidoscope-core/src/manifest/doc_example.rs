//! Checks that this code writes the example in `docs/formats.md`; see `codec::doc_example` for how to
//! rewrite it.

use super::*;
use crate::addr::{FrameIndex, Gfn};
use crate::codec::doc_example::documented;
use crate::color::{Color, Frame, FrameKind, KernelIdentity, Order, Region, RegionId, Temperature};
use crate::memory::{MemoryLayout, VecMemory};

/// Four frames: free, two cached pages of a file, kernel data.
fn example() -> Manifest {
    let layout = MemoryLayout::new(&[(Gfn(0).gpa(), 0x3000), (Gfn(256).gpa(), 0x1000)]).unwrap();
    let kernel = KernelIdentity {
        os: "linux".into(),
        release: "6.1.0".into(),
        banner: String::new(),
        build_id: "c0ffee".into(),
        paging: "x86-64 4-level".into(),
    };
    let regions = vec![
        Region {
            anchor: Some(FrameIndex(3)),
            ..Region::new(FrameKind::File, Order::FileOffset, "ext4:65024:12:/etc/passwd")
        },
        Region::new(FrameKind::Kernel, Order::KernelAddress, "kernel-data"),
    ];
    let file = |color, position, temperature| Frame {
        kind: FrameKind::File,
        color,
        region: Some(RegionId(0)),
        position,
        temperature,
    };
    let frames = [
        Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() },
        file(Color::FileMapped, 1, Temperature::ACCESSED | Temperature::ACTIVE),
        file(Color::FileCache, 0, Temperature::NONE),
        Frame {
            kind: FrameKind::Kernel,
            color: Color::KernelData,
            region: Some(RegionId(1)),
            position: 0x2a00,
            temperature: Temperature::FREQUENT | Temperature::COMMON,
        },
    ];
    let map = ColorMap::new(layout.clone(), kernel, frames, regions).unwrap();
    let identity = ImageIdentity::of(&VecMemory::zeroed(layout), &map).unwrap();
    Manifest::new(map, identity)
}

#[test]
fn the_documented_example_matches_the_encoder() {
    let example = example();
    let (file, payload) = (example.to_bytes().unwrap(), encode::payload(&example));
    let documented = documented(("file", &file), ("payload", &payload));
    assert_eq!(Manifest::from_bytes(&documented, &Limits::for_frames(4)).unwrap(), example);
}
