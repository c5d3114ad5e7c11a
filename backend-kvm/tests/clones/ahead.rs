//! What a guest's kernel will give away next of its free memory is copied ahead of who takes it.

use crate::common::{Outcome, can_watch, host};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::color::{Color, ColorMap, Frame, FrameKind, Order, Region, RegionId};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout};
use kaleidoscope_core::prefetch::{AllocationForecast, FreeOrder, LocalityOrder};
use kaleidoscope_kvm::machine::{Machine, NoDevices};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Frames of the guest, and those among them that are free: the first. They are given away from the
/// last to the first.
const FRAMES: u32 = 1024;
const FREE: u32 = 512;

fn order() -> Outcome<Arc<FreeOrder>> {
    let frames = (0..FRAMES).map(|index| match index < FREE {
        true => Frame {
            kind: FrameKind::Free,
            color: Color::Free,
            region: Some(RegionId(0)),
            position: Order::position_on_list(0, FREE - index),
            ..Frame::default()
        },
        false => Frame { kind: FrameKind::Kernel, color: Color::KernelData, ..Frame::default() },
    });
    let region = Region::new(FrameKind::Free, Order::Allocation, "free");
    let layout = MemoryLayout::contiguous(u64::from(FRAMES) << 12)?;
    let map = ColorMap::new(layout, Default::default(), frames, vec![region])?;
    Ok(Arc::new(FreeOrder::new(&LocalityOrder::new(map))))
}

/// Where the n-th frame that is given away is.
fn place(n: u32) -> u64 {
    u64::from(FREE - 1 - n) << 12
}

/// What a frame began with, and what who takes it writes into its middle.
fn before(n: u32) -> [u8; 4] {
    (n ^ 0xa5a5_a5a5).to_le_bytes()
}

/// Frames that the clone has of its own.
fn own(clone: &Machine) -> Outcome<usize> {
    Ok(clone.written()?.into_iter().map(|run| run.len()).sum())
}

/// Waits until the clone has so many.
fn has(clone: &Machine, frames: usize) -> Outcome<()> {
    let start = Instant::now();
    while own(clone)? < frames {
        assert!(start.elapsed() < Duration::from_secs(180), "it is not followed: {}", own(clone)?);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn free_memory_is_copied_before_it_is_taken() -> Outcome<()> {
    let Some(host) = host().filter(|_| can_watch()) else { return Ok(()) };
    let layout = MemoryLayout::contiguous(u64::from(FRAMES) << 12)?;
    let parent = Machine::new(&host, layout, 1, Arc::new(NoDevices))?;
    // Kernels leave in free memory what was there.
    (0..FREE).try_for_each(|n| parent.write(Gpa(place(n)), &before(n)))?;
    let snapshot = parent.freeze()?;
    let mut clone = Machine::clone_of(&host, &snapshot, Arc::new(NoDevices))?;
    clone.copy_ahead(Vec::new(), Some(AllocationForecast::new(order()?)))?;
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(own(&clone)?, 0, "who takes nothing has nothing");

    let take = |frames: std::ops::Range<u32>| {
        frames.into_iter().try_for_each(|n| clone.write(Gpa(place(n) + 2048), &before(!n)))
    };
    take(0..1)?;
    has(&clone, 1 + 8)?;
    // Those that were copied, and the one after them.
    take(1..10)?;
    has(&clone, 10 + 16)?;
    take(10..100)?;
    has(&clone, 101)?;
    // It ends, and is not far ahead.
    std::thread::sleep(Duration::from_millis(50));
    assert!(own(&clone)? <= 100 + 2 * 64, "{}", own(&clone)?);

    let again = clone.freeze()?;
    take(100..300)?;
    for n in 0..FREE {
        let is_taken = |by: u32| if n < by { before(!n) } else { [0; 4] };
        let mut bytes = [0; 4];
        let is = |seen: [u8; 4], wanted: [u8; 4]| assert_eq!(seen, wanted, "frame {n}");
        clone.read(Gpa(place(n)), &mut bytes)?;
        is(bytes, before(n));
        clone.read(Gpa(place(n) + 2048), &mut bytes)?;
        is(bytes, is_taken(300));
        again.image.read(Gpa(place(n) + 2048), &mut bytes)?;
        is(bytes, is_taken(100));
        snapshot.image.read(Gpa(place(n)), &mut bytes)?;
        is(bytes, before(n));
    }
    Ok(())
}
