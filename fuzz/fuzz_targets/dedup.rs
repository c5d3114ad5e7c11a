//! Any bytes as a file in a guest's page cache, and as what hashing has taught: a build id is bounded and is there, and yields are
//! written as they were read.
#![no_main]

use kaleidoscope_core::color::{
    Color, ColorMap, Frame, FrameKind, KernelIdentity, Order, Region, RegionId,
};
use kaleidoscope_core::dedup::{BuildIds, Catalog, HitRates};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use kaleidoscope_core::prefetch::LocalityOrder;
use libfuzzer_sys::fuzz_target;

const PAGE: usize = 4096;

/// Pages of a file; between the first and the second one, `hole` are not cached.
fn build_ids(data: &[u8], hole: u64) {
    let pages = data.len().div_ceil(PAGE).max(1);
    let Ok(layout) = MemoryLayout::contiguous((pages * PAGE) as u64) else { return };
    let mut memory = VecMemory::zeroed(layout.clone());
    memory.bytes_mut()[..data.len()].copy_from_slice(data);
    let frames = (0..pages as u64).map(|page| Frame {
        kind: FrameKind::File,
        color: Color::FileCache,
        region: Some(RegionId(0)),
        position: if page == 0 { 0 } else { page + hole },
        ..Frame::default()
    });
    let file = Region::new(FrameKind::File, Order::FileOffset, "ext4:1:12:/usr/lib/libc.so.6");
    let frames: Vec<_> = frames.collect();
    let map = ColorMap::new(layout, KernelIdentity::default(), frames, vec![file]).unwrap();
    let locality = LocalityOrder::new(map);
    let ids = BuildIds::read(&memory, &locality).unwrap();
    if let Some(id) = ids.get(RegionId(0)) {
        assert!((1..=64).contains(&id.len()));
        assert!(
            memory.bytes().chunks(PAGE).any(|page| page.windows(id.len()).any(|bytes| bytes == id))
        );
    }
    Catalog::new().add_with(&locality, &ids);
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    if choice % 4 != 0 {
        return build_ids(data, u64::from(choice / 4));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    match HitRates::parse(text) {
        Ok(yields) => {
            let text = yields.to_text();
            let again = HitRates::parse(&text).unwrap();
            assert_eq!(again.to_text(), text);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
