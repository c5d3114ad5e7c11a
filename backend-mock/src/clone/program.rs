//! What a vCPU does, and what it must see.

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

/// Frames of a block. One vCPU writes to a block and gives its frames back, or none does.
const BLOCK: u32 = 8;

/// Frames that a vCPU remembers to touch again.
const RECENT: usize = 32;

/// A random program, the same for the same seed. Each vCPU runs it with numbers of its own.
///
/// Frames belong to vCPUs in blocks of eight; one block in as many as there are vCPUs, and one
/// more, belongs to nobody and is only read, by all. A vCPU reads bytes and pages anywhere in its
/// own blocks and nobody's, writes to its own, gives frames of its own back, and at the end reads
/// all again that it changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Program {
    /// The seed.
    pub seed: u64,
    /// Touches of each vCPU.
    pub steps: u32,
    /// Percentage of the touches that are writes.
    pub writes: u8,
    /// Percentage of the touches that go to a frame touched lately, or next to one.
    pub near: u8,
    /// In a thousand touches, so many give frames back.
    pub give_backs: u16,
}

impl Default for Program {
    /// A thousand touches, a quarter of them writes, half of them near others, ten in a thousand
    /// giving back.
    fn default() -> Self {
        Self { seed: 0, steps: 1000, writes: 25, near: 50, give_backs: 10 }
    }
}

/// Why a vCPU ended before its program did.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Halt {
    /// It read a byte that is not what it must be.
    #[error("a wrong byte: {0}")]
    Wrong(#[from] Mismatch),
    /// It cannot go on.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// What it must see is not known: the snapshot memory cannot be read.
    #[error("the snapshot memory: {0}")]
    Truth(#[from] MemoryError),
}

/// What one vCPU did.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Done {
    /// Reads that were checked.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Frames given back.
    pub given_back: u64,
}

/// A vCPU with what it knows of its memory.
pub(super) struct Vcpu<'m> {
    memory: &'m MockMemory,
    truth: &'m dyn GuestMemory,
    /// What frames hold that this vCPU changed.
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
            let frame = mine(frame, number, vcpus, self.memory.frames());
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

    /// Replays touches, with the time between them as many times as long as `pace` says.
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

    /// What a frame must hold.
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

    /// Says more about a wrong byte by looking at the whole page.
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

/// Which vCPU changes a frame; `None` when nobody does.
fn owner(frame: FrameIndex, vcpus: u32) -> Option<u32> {
    Some(frame.0 / BLOCK % (vcpus + 1)).filter(|owner| *owner < vcpus)
}

/// The frame itself if the vCPU may touch it, or one local_cache that it may.
fn mine(frame: FrameIndex, number: u32, vcpus: u32, frames: u32) -> FrameIndex {
    let frame = FrameIndex(frame.0.min(frames.saturating_sub(1)));
    if owner(frame, vcpus).is_none_or(|owner| owner == number) {
        return frame;
    }
    // Every so many blocks there is one of its own.
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
    fn vcpus_keep_to_their_own_frames_and_nobodys() {
        for (frames, vcpus) in [(40, 4), (1000, 3), (64, 1), (4096, 7)] {
            for number in 0..vcpus {
                for frame in 0..frames + 5 {
                    let frame = mine(FrameIndex(frame), number, vcpus, frames);
                    assert!(frame.0 < frames);
                    assert!(owner(frame, vcpus).is_none_or(|owner| owner == number), "{frame}");
                }
            }
        }
    }
}
