//! Huge pages in flight: collected frame by frame, and installed as a whole.

use crate::memory::PageSize;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::Installed;
use kaleidoscope_core::memory::{LazyTable, Page};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::ops::Range;

/// Frames of a block, and bytes.
const FRAMES: u32 = PageSize::Huge.frames();
const BYTES: usize = PageSize::Huge.bytes();

/// The contents of a block that was given back.
static ZEROS: [u8; BYTES] = [0; BYTES];

/// The blocks of a clone's memory. Blocks that are begun and not complete take memory in addition
/// to the clone's.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Frames of the guest.
    frames: u32,
    blocks: LazyTable<Mutex<Block>>,
}

/// A huge page.
#[derive(Debug, Default)]
enum Block {
    /// None of its frames has arrived.
    #[default]
    Empty,
    /// Some have arrived.
    Begun(Box<Begun>),
    /// It is in the clone's memory.
    Installed,
    /// The guest gave it back: from here on it is zeros, in its memory or not.
    GivenBack,
}

#[derive(Debug)]
struct Begun {
    bytes: Vec<u8>,
    /// A bit for each frame that has arrived.
    came: [u64; FRAMES as usize / 64],
    missing: u32,
}

impl Begun {
    /// A block with this number of frames of the guest.
    fn new(frames: u32) -> Box<Self> {
        Box::new(Self { bytes: vec![0; BYTES], came: [0; FRAMES as usize / 64], missing: frames })
    }

    /// The word and the bit of a frame.
    fn bit(&mut self, frame: FrameIndex) -> (Option<&mut u64>, u64) {
        let at = frame.0 % FRAMES;
        (self.came.get_mut(at as usize / 64), 1 << (at % 64))
    }

    /// Stores a frame's bytes; `false` when it has them already.
    fn put(&mut self, frame: FrameIndex, page: Option<&Page>) -> bool {
        let (Some(word), bit) = self.bit(frame) else { return false };
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.missing = self.missing.saturating_sub(1);
        let at = (frame.0 % FRAMES) as usize * FRAME_BYTES;
        if let (Some(page), Some(bytes)) = (page, self.bytes.get_mut(at..at + FRAME_BYTES)) {
            bytes.copy_from_slice(page);
        }
        true
    }

    /// Forgets a frame, which will arrive again.
    fn forget(&mut self, frame: FrameIndex) {
        if let (Some(word), bit) = self.bit(frame) {
            *word &= !bit;
            self.missing += 1;
        }
    }
}

impl Blocks {
    /// Blocks of a guest with so many frames.
    pub(super) fn new(frames: u32) -> Self {
        Self { frames, blocks: LazyTable::new(frames.div_ceil(FRAMES) as usize) }
    }

    /// Fills a block that was complete, and faults again, with zeros: its memory was given back
    /// without an event.
    ///
    /// # Errors
    /// [`Errno::EXIST`] for a block that is not complete; whatever `fill` fails with.
    pub(super) fn refill(
        &self,
        frame: FrameIndex,
        fill: impl FnOnce(u32, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let block = self.blocks.get((frame.0 / FRAMES) as usize).ok_or(Errno::INVAL)?;
        match &*block.lock() {
            Block::Empty | Block::Begun(_) => Err(Errno::EXIST),
            Block::Installed | Block::GivenBack => fill(frame.0 / FRAMES * FRAMES, &ZEROS),
        }
    }

    /// A frame came, zeros without a page. When its block is complete `fill` places it: the block's
    /// first frame, and the bytes.
    ///
    /// # Errors
    /// Whatever `fill` fails with, but for [`Errno::AGAIN`] and [`Errno::EXIST`].
    pub(super) fn put(
        &self,
        frame: FrameIndex,
        page: Option<&Page>,
        fill: impl FnOnce(u32, &[u8]) -> Result<(), Errno>,
    ) -> Result<Installed, Errno> {
        let start = frame.0 / FRAMES * FRAMES;
        let block = self.blocks.get((frame.0 / FRAMES) as usize).ok_or(Errno::INVAL)?;
        let mut block = block.lock();
        if let Block::Empty = &*block {
            *block = Block::Begun(Begun::new(FRAMES.min(self.frames.saturating_sub(start))));
        }
        let filled = match &mut *block {
            Block::Empty | Block::Installed => return Ok(Installed::AlreadyPresent),
            Block::GivenBack => {
                // The system may empty it only now, so that zeros that were placed before are no
                // proof.
                return match fill(start, &ZEROS) {
                    Ok(()) => Ok(Installed::Installed),
                    Err(Errno::EXIST) => Ok(Installed::AlreadyPresent),
                    Err(Errno::AGAIN) => Ok(Installed::TryAgain),
                    Err(error) => Err(error),
                };
            }
            Block::Begun(begun) => {
                if !begun.put(frame, page) {
                    return Ok(Installed::AlreadyPresent);
                }
                if begun.missing > 0 {
                    return Ok(Installed::Installed);
                }
                let filled = fill(start, &begun.bytes);
                if filled.is_err() {
                    begun.forget(frame);
                }
                filled
            }
        };
        match filled {
            Ok(()) => {
                *block = Block::Installed;
                Ok(Installed::Installed)
            }
            Err(Errno::AGAIN) => Ok(Installed::TryAgain),
            Err(error) => Err(error),
        }
    }

    /// The guest gave frames back, whole blocks of them.
    pub(super) fn give_back(&self, frames: Range<u32>) {
        for number in frames.start / FRAMES..frames.end.div_ceil(FRAMES) {
            if let Some(block) = self.blocks.get(number as usize) {
                *block.lock() = Block::GivenBack;
            }
        }
    }

    /// Places the blocks that some frames arrived for; their other frames are zeros.
    ///
    /// # Errors
    /// As for [`Blocks::put`].
    pub(super) fn complete(
        &self,
        fill: impl Fn(u32, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        for number in 0..self.blocks.len() {
            let Some(block) = self.blocks.made(number) else { continue };
            let mut block = block.lock();
            let Block::Begun(begun) = &*block else { continue };
            let start = u32::try_from(number).unwrap_or(u32::MAX).saturating_mul(FRAMES);
            fill(start, &begun.bytes)?;
            *block = Block::Installed;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const PAGE: Page = [7; FRAME_BYTES];

    /// Fills nothing, and remembers what it was to fill.
    struct Fills(RefCell<Vec<(u32, usize)>>);

    impl Fills {
        fn fill(&self, start: u32, bytes: &[u8]) {
            let pages = bytes.chunks(FRAME_BYTES).filter(|page| **page == PAGE).count();
            self.0.borrow_mut().push((start, pages));
        }
    }

    #[test]
    fn a_block_is_placed_when_all_of_it_came() {
        let (blocks, fills) = (Blocks::new(700), Fills(RefCell::default()));
        let put = |frame: u32, page| {
            blocks.put(FrameIndex(frame), page, |start, bytes| {
                fills.fill(start, bytes);
                Ok(())
            })
        };
        // The last block has 188 frames of the guest.
        for frame in (512..700).rev() {
            assert!(fills.0.borrow().is_empty());
            let page = (frame % 2 == 0).then_some(&PAGE);
            assert_eq!(put(frame, page), Ok(Installed::Installed));
            assert_eq!(put(frame, page), Ok(Installed::AlreadyPresent));
        }
        assert_eq!(*fills.0.borrow(), [(512, 94)]);
        assert_eq!(put(1024, None), Err(Errno::INVAL), "past the end");
        assert_eq!(put(3, Some(&PAGE)), Ok(Installed::Installed));
        let fill = |start, bytes: &[u8]| {
            fills.fill(start, bytes);
            Ok(())
        };
        blocks.complete(fill).unwrap();
        blocks.complete(|_, _| Err(Errno::IO)).unwrap();
        assert_eq!(*fills.0.borrow(), [(512, 94), (0, 1)], "once");
    }

    #[test]
    fn memory_that_changes_is_filled_later() {
        let blocks = Blocks::new(2);
        let first = blocks.put(FrameIndex(0), Some(&PAGE), |_, _| unreachable!());
        assert_eq!(first, Ok(Installed::Installed));
        let put = |error| {
            blocks.put(FrameIndex(1), Some(&PAGE), |_, bytes| {
                assert_eq!(bytes[..2 * FRAME_BYTES], [7; 2 * FRAME_BYTES]);
                error
            })
        };
        assert_eq!(put(Err(Errno::AGAIN)), Ok(Installed::TryAgain));
        assert_eq!(put(Err(Errno::NOMEM)), Err(Errno::NOMEM));
        assert_eq!(put(Ok(())), Ok(Installed::Installed));
        blocks.give_back(0..2);
        let zero = |error| {
            blocks.put(FrameIndex(1), None, |_, bytes| {
                assert!(bytes.iter().all(|byte| *byte == 0));
                error
            })
        };
        assert_eq!(zero(Ok(())), Ok(Installed::Installed));
        assert_eq!(zero(Err(Errno::EXIST)), Ok(Installed::AlreadyPresent));
        assert_eq!(zero(Err(Errno::AGAIN)), Ok(Installed::TryAgain));
        assert_eq!(zero(Err(Errno::NOMEM)), Err(Errno::NOMEM));
    }
}
