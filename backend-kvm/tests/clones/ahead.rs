//! Frames that the guest's kernel will allocate next are copied before they are used.

use crate::common::{TestResult, has_userfaultfd, host};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::color::{Color, ColorMap, Frame, FrameKind, Order, Region, RegionId};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout};
use kaleidoscope_core::prefetch::{AllocationForecast, FreeOrder, LocalityOrder};
use kaleidoscope_kvm::machine::{Machine, NoDevices};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Number of frames of the guest, and number of free frames among them: the first. They are
/// allocated from the last to the first.
const FRAMES: u32 = 1024;
const FREE: u32 = 512;

fn order() -> TestResult<Arc<FreeOrder>> {
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

/// Guest-physical address of the n-th allocated frame.
fn address(n: u32) -> u64 {
    u64::from(FREE - 1 - n) << 12
}

/// Initial contents of a frame, which the guest overwrites in the middle.
fn initial(n: u32) -> [u8; 4] {
    (n ^ 0xa5a5_a5a5).to_le_bytes()
}

/// Number of private frames of the clone.
fn private_frames(clone: &Machine) -> TestResult<usize> {
    Ok(clone.written()?.into_iter().map(|run| run.len()).sum())
}

/// Waits until the clone has this many private frames.
fn wait_until_private(clone: &Machine, frames: usize) -> TestResult<()> {
    let start = Instant::now();
    while private_frames(clone)? < frames {
        assert!(
            start.elapsed() < Duration::from_secs(180),
            "it is not followed: {}",
            private_frames(clone)?
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn free_memory_is_copied_before_it_is_taken() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let layout = MemoryLayout::contiguous(u64::from(FRAMES) << 12)?;
    let parent = Machine::new(&host, layout, 1, Arc::new(NoDevices))?;
    // Kernels do not clear free memory.
    (0..FREE).try_for_each(|n| parent.write(Gpa(address(n)), &initial(n)))?;
    let snapshot = parent.freeze()?;
    let mut clone = Machine::clone_of(&host, &snapshot, Arc::new(NoDevices))?;
    clone.copy_ahead(Vec::new(), Some(AllocationForecast::new(order()?)))?;
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(private_frames(&clone)?, 0, "nothing was allocated");

    let take = |frames: std::ops::Range<u32>| {
        frames.into_iter().try_for_each(|n| clone.write(Gpa(address(n) + 2048), &initial(!n)))
    };
    take(0..1)?;
    wait_until_private(&clone, 1 + 8)?;
    // The copied frames, and the one after them.
    take(1..10)?;
    wait_until_private(&clone, 10 + 16)?;
    take(10..100)?;
    wait_until_private(&clone, 101)?;
    // Copying stops, not far ahead.
    std::thread::sleep(Duration::from_millis(50));
    assert!(private_frames(&clone)? <= 100 + 2 * 64, "{}", private_frames(&clone)?);

    let again = clone.freeze()?;
    take(100..300)?;
    for n in 0..FREE {
        let is_taken = |by: u32| if n < by { initial(!n) } else { [0; 4] };
        let mut bytes = [0; 4];
        let is = |seen: [u8; 4], wanted: [u8; 4]| assert_eq!(seen, wanted, "frame {n}");
        clone.read(Gpa(address(n)), &mut bytes)?;
        is(bytes, initial(n));
        clone.read(Gpa(address(n) + 2048), &mut bytes)?;
        is(bytes, is_taken(300));
        again.image.read(Gpa(address(n) + 2048), &mut bytes)?;
        is(bytes, is_taken(100));
        snapshot.image.read(Gpa(address(n)), &mut bytes)?;
        is(bytes, initial(n));
    }
    Ok(())
}
