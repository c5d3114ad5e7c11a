//! The program of a vCPU, and the bytes that it expects to read.

use super::memory::{MockMemory, VcpuError};
use super::pattern::{self, Mismatch};
use crate::Rng;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::memory::{GuestMemory, MemoryError, Page, ZERO_PAGE};
use kaleidoscope_core::prefetch::Access;
use kaleidoscope_core::replay::Touch;
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

/// Frames of a block. All frames of a block belong to one vCPU, or to none.
const BLOCK: u32 = 8;

/// Number of recently touched frames that a vCPU remembers.
const RECENT: usize = 32;

/// A random program, determined by its seed. Each vCPU runs it with different random numbers.
///
/// Blocks of eight frames are assigned to the vCPUs in turn; after a block for each vCPU follows
/// one that belongs to none and is only read. A vCPU reads bytes and pages in its own and the
/// shared blocks, writes to its own, gives its own frames back, and finally reads all frames again
/// that it changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Program {
    /// The seed.
    pub seed: u64,
    /// Touches of each vCPU.
    pub steps: u32,
    /// Percentage of the touches that are writes.
    pub writes: u8,
    /// Percentage of the touches that go to a recently touched frame or its neighbor.
    pub near: u8,
    /// Of a thousand touches, how many give frames back.
    pub give_backs: u16,
}

impl Default for Program {
    /// A thousand touches: a quarter are writes, half are near recent ones, and ten in a thousand
    /// give frames back.
    fn default() -> Self {
        Self { seed: 0, steps: 1000, writes: 25, near: 50, give_backs: 10 }
    }
}

/// Why a vCPU ended before its program was complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Halt {
    /// It read a wrong byte.
    #[error("a wrong byte: {0}")]
    Wrong(#[from] Mismatch),
    /// Its memory returned an error.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The expected byte is unknown: the snapshot memory cannot be read.
    #[error("the snapshot cannot be read: {0}")]
    Truth(#[from] MemoryError),
}

/// Work of one vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Done {
    /// Reads, all checked.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Frames given back.
    pub given_back: u64,
}

/// A vCPU, with the expected contents of its memory.
pub(super) struct Vcpu<'m> {
    memory: &'m MockMemory,
    truth: &'m dyn GuestMemory,
    /// Expected contents of the frames that this vCPU changed.
    own: HashMap<FrameIndex, Box<Page>>,
    pub(super) done: Done,
}

impl<'m> Vcpu<'m> {
    pub(super) fn new(memory: &'m MockMemory, truth: &'m dyn GuestMemory) -> Self {
        Self { memory, truth, own: HashMap::new(), done: Done::default() }
    }

    /// Runs a program as vCPU `number` of `vcpus`.
    pub(super) fn run(&mut self, program: &Program, number: u32, vcpus: u32) -> Result<(), Halt> {
        let mut rng = Rng::new(program.seed ^ u64::from(number + 1).wrapping_mul(0x9e37_79b9));
        let mut recent: Vec<FrameIndex> = Vec::with_capacity(RECENT);
        for _ in 0..program.steps {
            let near = rng.below(100) < u64::from(program.near);
            let frame = match recent.get(rng.index(RECENT)).filter(|_| near) {
                Some(frame) => FrameIndex(frame.0.saturating_add(below(&mut rng, 3))),
                None => FrameIndex(below(&mut rng, self.memory.frames())),
            };
            let frame = nearest_allowed(frame, number, vcpus, self.memory.frames());
            let is_own = owner(frame, vcpus) == Some(number);
            if recent.len() == RECENT {
                recent.swap_remove(rng.index(RECENT));
            }
            recent.push(frame);
            if is_own && rng.below(1000) < u64::from(program.give_backs) {
                self.give_back(frame, &mut rng)?;
            } else if is_own && rng.below(100) < u64::from(program.writes) {
                let bytes = rng.next_u64().to_le_bytes();
                self.write(frame, rng.index(FRAME_BYTES - bytes.len()), &bytes)?;
            } else if rng.one_in(4) {
                self.read(frame, 0..FRAME_BYTES)?;
            } else {
                let at = rng.index(FRAME_BYTES - 64);
                self.read(frame, at..at + 1 + rng.index(64))?;
            }
        }
        self.read_own_again()
    }

    /// Replays touches, with the time between them multiplied by `pace`.
    pub(super) fn replay(&mut self, touches: &[Touch], pace: f64) -> Result<(), Halt> {
        let mut before = 0;
        for touch in touches {
            let gap = Duration::from_micros(touch.at_us.saturating_sub(before));
            before = touch.at_us;
            let gap = Duration::try_from_secs_f64(gap.as_secs_f64() * pace).unwrap_or_default();
            if gap > Duration::from_micros(50) {
                std::thread::sleep(gap);
            }
            if touch.access == Access::Write {
                self.write(touch.frame, 8, &touch.at_us.to_le_bytes())?;
            }
            self.read(touch.frame, 0..FRAME_BYTES)?;
        }
        self.read_own_again()
    }

    fn read_own_again(&mut self) -> Result<(), Halt> {
        let mut own: Vec<_> = self.own.keys().copied().collect();
        own.sort_unstable();
        own.into_iter().try_for_each(|frame| self.read(frame, 0..FRAME_BYTES))
    }

    /// Expected contents of a frame.
    fn expected(&self, frame: FrameIndex) -> Result<Page, MemoryError> {
        if let Some(page) = self.own.get(&frame) {
            return Ok(**page);
        }
        let mut page = ZERO_PAGE;
        let gfn = self.truth.layout().gfn_of(frame).unwrap_or_default();
        self.truth.read(gfn.gpa(), &mut page).map(|()| page)
    }

    fn read(&mut self, frame: FrameIndex, range: Range<usize>) -> Result<(), Halt> {
        let mut found = [0; FRAME_BYTES];
        let found = found.get_mut(range.clone()).unwrap_or_default();
        self.memory.read(frame, range.start, found)?;
        self.done.reads += 1;
        let expected = self.expected(frame)?;
        let expected = expected.get(range.clone()).unwrap_or_default();
        if let Err(mismatch) = pattern::compare(frame, range.start, expected, found) {
            return Err(self.explain(mismatch));
        }
        Ok(())
    }

    /// Adds detail to a mismatch by comparing the whole page.
    fn explain(&self, mismatch: Mismatch) -> Halt {
        let frame = mismatch.frame;
        let seen = self.memory.peek(frame).ok().flatten().zip(self.expected(frame).ok());
        let whole = seen.and_then(|(f, e)| pattern::compare(frame, 0, &e, &f).err());
        Halt::Wrong(whole.unwrap_or(mismatch))
    }

    fn write(&mut self, frame: FrameIndex, offset: usize, bytes: &[u8]) -> Result<(), Halt> {
        let mut page = self.expected(frame)?;
        self.memory.write(frame, offset, bytes)?;
        self.done.writes += 1;
        let target = page.get_mut(offset..).unwrap_or_default();
        target.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.own.insert(frame, Box::new(page));
        Ok(())
    }

    fn give_back(&mut self, frame: FrameIndex, rng: &mut Rng) -> Result<(), Halt> {
        let block_end = (frame.0 - frame.0 % BLOCK + BLOCK).min(self.memory.frames());
        let end = frame.0 + 1 + below(rng, block_end - frame.0);
        let frames = frame.0..end.min(block_end);
        self.memory.give_back(frames.clone())?;
        for frame in frames {
            self.done.given_back += 1;
            self.own.insert(FrameIndex(frame), Box::new(ZERO_PAGE));
        }
        Ok(())
    }
}

/// The vCPU that a frame belongs to; `None` for shared blocks.
fn owner(frame: FrameIndex, vcpus: u32) -> Option<u32> {
    Some(frame.0 / BLOCK % (vcpus + 1)).filter(|owner| *owner < vcpus)
}

/// The frame itself if the vCPU may touch it, else a nearby one that it may touch.
fn nearest_allowed(frame: FrameIndex, number: u32, vcpus: u32, frames: u32) -> FrameIndex {
    let frame = FrameIndex(frame.0.min(frames.saturating_sub(1)));
    if owner(frame, vcpus).is_none_or(|owner| owner == number) {
        return frame;
    }
    // Each row of `vcpus + 1` blocks has one block of the vCPU.
    let row = BLOCK * (vcpus + 1);
    let own = frame.0 - frame.0 % row + number * BLOCK + frame.0 % BLOCK;
    if own < frames { FrameIndex(own) } else { FrameIndex((number * BLOCK).min(frames - 1)) }
}

fn below(rng: &mut Rng, bound: u32) -> u32 {
    u32::try_from(rng.below(u64::from(bound))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_only_touch_their_own_and_shared_frames() {
        for (frames, vcpus) in [(40, 4), (1000, 3), (64, 1), (4096, 7)] {
            for number in 0..vcpus {
                for frame in 0..frames + 5 {
                    let frame = nearest_allowed(FrameIndex(frame), number, vcpus, frames);
                    assert!(frame.0 < frames);
                    assert!(owner(frame, vcpus).is_none_or(|owner| owner == number), "{frame}");
                }
            }
        }
    }
}
