//! Stages that become images.

#![expect(clippy::single_range_in_vec_init, reason = "sets of frames")]

use super::Stage;
use super::pages::{LazyPages, Part};
use super::stage::Put;
use crate::error::KvmError;
use crate::memory::PageSize;
use crate::sys::{Userfault, own_pages};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::FreeFrames;
use kaleidoscope_core::clone::ports::{Placed, Placer};
use kaleidoscope_core::color::{Color, ColorMap, Frame, FrameKind, KernelIdentity};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::prefetch::Atlas;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

type Outcome = Result<(), Box<dyn Error>>;

const FRAMES: u32 = 96;

fn layout() -> MemoryLayout {
    MemoryLayout::contiguous(u64::from(FRAMES) << 12).unwrap()
}

fn page(n: u32) -> [u8; FRAME_BYTES] {
    [n.to_le_bytes()[0] + 1; FRAME_BYTES]
}

/// A guest of which these frames are free.
fn atlas(free: Range<u32>) -> Arc<Atlas> {
    let frames = (0..FRAMES).map(|n| match free.contains(&n) {
        true => Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() },
        false => Frame::default(),
    });
    let map = ColorMap::new(layout(), KernelIdentity::default(), frames, Vec::new());
    Arc::new(Atlas::new(map.unwrap()))
}

fn put(stage: &Stage, n: u32) -> Put {
    stage.put(FrameIndex(n), &page(n)).unwrap()
}

fn refusal(result: Result<impl Sized, KvmError>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn a_stage_with_every_page_becomes_an_image() -> Outcome {
    let stage = Stage::new(layout())?;
    let free = atlas(90..96);
    let first = stage.admit(&free, FreeFrames::Zero)?;
    // The same frames are free, whoever says so.
    stage.admit(&atlas(90..96), FreeFrames::Zero)?;
    for n in (0..80).chain([91]) {
        assert_eq!(put(&stage, n), Put::New);
    }
    assert!(refusal(stage.freeze(&[80..89])).contains("could not be kept"));
    assert_eq!(put(&stage, 5), Put::Known);
    assert_eq!(put(&stage, 89), Put::New, "what cannot be frozen goes on");
    let image = stage.freeze(&[80..89])?;
    let expected = |n: u32| if n < 80 || n == 89 || n == 91 { page(n)[0] } else { 0 };
    let bytes = || image.bytes().iter().step_by(FRAME_BYTES).copied();
    assert!(bytes().eq((0..FRAMES).map(expected)));
    // What comes too late is zeros for whoever asked.
    assert_eq!([5, 80, 91, 95].map(|n| put(&stage, n)), {
        [Put::Known, Put::Sealed, Put::Known, Put::Sealed]
    });
    assert!(bytes().eq((0..FRAMES).map(expected)));
    let mut byte = [7];
    first.read(80 * FRAME_BYTES, &mut byte)?;
    assert_eq!(byte, [0]);
    assert!(Arc::ptr_eq(&image, &stage.freeze(&[])?), "it is frozen once");
    // Clones that need what is zeros now have to go elsewhere.
    stage.admit(&free, FreeFrames::Zero)?;
    assert!(refusal(stage.admit(&free, FreeFrames::Fetch)).contains("other free frames"));
    assert!(refusal(stage.admit(&atlas(89..96), FreeFrames::Zero)).contains("other free frames"));
    Ok(())
}

#[test]
fn clones_that_do_without_different_frames_cannot_be_frozen() -> Outcome {
    for (other, mode) in [(90..96, FreeFrames::Fetch), (91..96, FreeFrames::Zero)] {
        let stage = Stage::new(layout())?;
        stage.admit(&atlas(90..96), FreeFrames::Zero)?;
        stage.admit(&atlas(other), mode)?;
        (0..FRAMES).for_each(|n| assert_eq!(put(&stage, n), Put::New));
        assert!(refusal(stage.freeze(&[])).contains("do not agree"));
    }
    Ok(())
}

#[test]
fn frames_that_are_needed_are_never_zeros() -> Outcome {
    let stage = Stage::new(layout())?;
    stage.admit(&atlas(0..FRAMES), FreeFrames::Fetch)?;
    (1..FRAMES).for_each(|n| assert_eq!(put(&stage, n), Put::New));
    assert!(refusal(stage.freeze(&[])).contains("could not be kept"), "free frames are fetched");
    assert!(refusal(stage.freeze(&[1..FRAMES])).contains("could not be kept"));
    assert!(stage.freeze(&[0..1]).is_ok());
    Ok(())
}

/// Siblings put pages while one of them wants its stage frozen: it gets all of them or none.
#[test]
fn a_stage_is_frozen_with_every_page_or_not_at_all() -> Outcome {
    for round in 0..200u32 {
        let stage = Stage::new(layout())?;
        stage.admit(&atlas(0..0), FreeFrames::Fetch)?;
        let image = std::thread::scope(|scope| {
            for thread in 0..3 {
                let stage = &stage;
                scope.spawn(move || {
                    (0..FRAMES).for_each(|n| {
                        let n = (n * (2 * thread + 1) + round) % FRAMES;
                        assert_ne!(stage.put(FrameIndex(n), &page(n)).unwrap(), Put::Sealed);
                    });
                });
            }
            loop {
                match stage.freeze(&[]) {
                    Ok(image) => return image,
                    Err(KvmError::NotWhole(_)) => std::thread::yield_now(),
                    Err(other) => panic!("{other}"),
                }
            }
        });
        let firsts = image.bytes().iter().step_by(FRAME_BYTES).copied();
        assert!(firsts.eq((0..FRAMES).map(|n| page(n)[0])));
    }
    Ok(())
}

#[test]
fn zeros_over_a_page_of_the_stage_stay() -> Outcome {
    let stage = Stage::new(layout())?;
    let free = atlas(90..96);
    let mapping = Arc::new(stage.admit(&free, FreeFrames::Zero)?);
    if let Err(error) = Userfault::new(Arc::clone(&mapping), 0) {
        println!("******** SKIPPED: memory cannot be watched here: {error} ********");
        return Ok(());
    }
    let part = Part { mapping: Arc::clone(&mapping), frames: 0..FRAMES };
    let pages = LazyPages::new(&[part], 1, Some(Arc::clone(&stage)), PageSize::Small)?;
    for n in 0..90 {
        assert_eq!(pages.place(FrameIndex(n), &page(n))?, Placed::Placed);
    }
    assert_eq!(pages.zero_run(90..93)?, 3);
    // A sibling's policy takes it along.
    assert_eq!(put(&stage, 91), Put::New);
    let image = pages.release()?.ok_or("it is staged")?;
    assert_eq!(pages.place(FrameIndex(94), &page(94))?, Placed::AlreadyThere, "nobody waits");
    let mut bytes = vec![1; FRAMES as usize * FRAME_BYTES];
    mapping.read(0, &mut bytes)?;
    let seen = |n: u32| bytes.get(n as usize * FRAME_BYTES).copied();
    assert!((0..90).all(|n| seen(n) == Some(page(n)[0])));
    assert!((90..FRAMES).all(|n| seen(n) == Some(0)));
    // Its image has the sibling's page there, and the clone's next freeze has to say otherwise.
    assert_eq!(image.bytes().get(91 * FRAME_BYTES).copied(), Some(page(91)[0]));
    assert_eq!(own_pages(&mapping)?, [91 * FRAME_BYTES..92 * FRAME_BYTES]);
    Ok(())
}
