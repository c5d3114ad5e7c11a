//! Any regions as a guest's RAM; what the layout says must agree with itself.
#![no_main]

use kaleidoscope_core::addr::{Gfn, Gpa};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_fuzz::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (first, frames) = (Gfn(input.u64() >> 16), input.u64() >> 40);
    let mut regions = Vec::new();
    while !input.is_empty() {
        let (gpa, bytes) = (input.u64(), input.u64());
        // Most inputs should get past the first checks.
        let (gpa, bytes) =
            if gpa & 1 == 0 { (gpa >> 12 & !0xfff, bytes >> 32 & !0xfff) } else { (gpa, bytes) };
        regions.push((Gpa(gpa), bytes));
    }
    let layout = match MemoryLayout::new(&regions) {
        Ok(layout) => layout,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let total: u64 = regions.iter().map(|r| r.1 / 4096).sum();
    assert_eq!(u64::from(layout.frames()), total);
    for region in layout.regions() {
        let last = Gfn(region.start.0 + u64::from(region.frames) - 1);
        for gfn in [region.start, last, Gfn(region.start.0.wrapping_sub(1)), Gfn(last.0 + 1)] {
            let inside =
                regions.iter().any(|r| r.0.gfn() <= gfn && gfn.0 - r.0.gfn().0 < r.1 / 4096);
            assert_eq!(layout.index_of(gfn).is_some(), inside);
            if let Some(index) = layout.index_of(gfn) {
                assert_eq!(layout.gfn_of(index), Some(gfn));
                let (found, left) = layout.span_at(gfn.gpa()).expect("it has an index");
                assert_eq!((found.start, left), (region.start, (last.0 - gfn.0 + 1) * 4096));
            }
        }
    }
    let mut at = first.0;
    for part in layout.parts(first, frames) {
        assert!(part.start.0 >= at && part.frames > 0);
        at = part.start.0 + u64::from(part.frames);
        assert_eq!(layout.index_of(part.start), Some(part.first_index));
        assert!(layout.index_of(Gfn(at - 1)).is_some());
    }
    assert!(at <= first.0.saturating_add(frames));
});
