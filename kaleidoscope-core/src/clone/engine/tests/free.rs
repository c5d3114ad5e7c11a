//! What an engine does with free frames by default.

use super::*;
use crate::memory::SnapshotId;
use crate::prefetch::{ColorGuide, Colored, Settings};

/// An engine with default options on this map and memory, and the policy `predicted`.
fn by_default(map: ColorMap, image: VecMemory) -> (Arc<Memory>, Engine) {
    let memory = Memory::new();
    let locality: Arc<LocalityOrder> = map.into();
    let settings = Settings { zero_ahead: 8, ..Settings::bare("bare") };
    let policy = Colored::new(Arc::new(ColorGuide::new(Arc::clone(&locality), settings)));
    let source = Arc::new(LocalSource::new(Arc::new(image)));
    let parts = EngineParts::new(locality, Box::new(policy), source, Arc::clone(&memory) as _);
    (memory, Engine::start(parts, EngineOptions::default()).unwrap())
}

fn map_trusting(snapshot: Option<SnapshotId>) -> ColorMap {
    guest().0.map().clone().with_trusted_free_frames(snapshot)
}

#[test]
fn trusted_free_frames_are_zeros() {
    let image = VecMemory::clone(&guest().1);
    let (memory, engine) = by_default(map_trusting(image.snapshot_id()), image);
    engine.fault(FrameIndex(3), Access::Write).unwrap();
    assert_eq!(memory.page(FrameIndex(3)), Some(ZERO_PAGE));
    let total = engine.statistics().total();
    assert_eq!((total.zero_faults, total.faults), (1, 0));
}

/// The map is of another memory, or does not know of which, or nothing vouches for its free frames.
#[test]
fn other_free_frames_have_the_parents_bytes() {
    let image = VecMemory::clone(&guest().1);
    let other = VecMemory::zeroed(image.layout().clone());
    let contradicted = map_trusting(image.snapshot_id()).with_contradictions(1);
    let maps = [
        map_trusting(other.snapshot_id()),
        map_trusting(None),
        guest().0.map().clone(),
        contradicted,
    ];
    for map in maps {
        let (memory, engine) = by_default(map, image.clone());
        for n in (3..FRAMES).step_by(7) {
            engine.fault(FrameIndex(n), Access::Write).unwrap();
            assert_eq!(memory.page(FrameIndex(n)), Some(snapshot(&image, FrameIndex(n))));
        }
        let total = engine.statistics().total();
        assert_eq!((total.zero_faults, total.zeroed_ahead), (0, 0));
    }
}

/// Free frames that are not zeros come ahead of the touches, as the others do, and only they.
#[test]
fn fetched_free_frames_are_fetched_ahead() {
    let image = VecMemory::clone(&guest().1);
    let (memory, engine) = by_default(guest().0.map().clone(), image);
    // The block around it is frames 24 to 31, of which 24 and 31 are free.
    engine.fault(FrameIndex(24), Access::Write).unwrap();
    while engine.statistics().total().prefetched == 0 {
        assert!(engine.stopped().is_none());
        std::thread::yield_now();
    }
    let present: Vec<u32> = (0..FRAMES).filter(|n| memory.page(FrameIndex(*n)).is_some()).collect();
    assert_eq!(present, [24, 31]);
    let total = engine.statistics().total();
    assert_eq!((total.faults, total.fetched, total.prefetched), (1, 1, 1));
}
