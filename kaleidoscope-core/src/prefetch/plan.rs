//! Plans: the frames to fetch or to fill with zeros for one fault, in order.

use super::LocalityOrder;
use crate::addr::FrameIndex;
use crate::memory::LazyTable;
use std::cell::Cell;
use std::sync::Arc;

/// Which frames are present in the clone or being fetched.
pub trait Presence {
    /// Whether the frame is neither present nor being fetched. `false` for frames outside the
    /// guest.
    fn is_absent(&self, frame: FrameIndex) -> bool;
}

impl<F: Fn(FrameIndex) -> bool> Presence for F {
    fn is_absent(&self, frame: FrameIndex) -> bool {
        self(frame)
    }
}

/// Where the bytes of the faulting frame come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Answer {
    /// From the parent.
    #[default]
    Fetch,
    /// Filled with zeros locally: the guest does not need the parent's bytes.
    Zero,
}

/// A plan, reused from fault to fault so that the hot path does not allocate.
///
/// A [`Planner`] fills it and enforces what every plan must hold, whatever the policy: no frame
/// outside the guest, no present frame, no frame twice, no more than the budget, and zeros only for
/// free frames.
#[derive(Debug)]
pub struct Plan {
    locality: Arc<LocalityOrder>,
    frames: PlannedFrames,
    budget: usize,
    allows_zeros: bool,
}

/// What a plan holds so far.
#[derive(Debug)]
struct PlannedFrames {
    answer: Answer,
    fetch: Vec<FrameIndex>,
    zero: Vec<FrameIndex>,
    asked: Option<FrameIndex>,
    /// One bit per frame: the frame faulted or is planned. Words are allocated on first use, so
    /// that starting a large clone costs no more than starting a small one; a `BitVec` has all of
    /// its words at once.
    planned: LazyTable<Cell<u64>>,
}

impl Plan {
    /// An empty plan with room for `budget` frames to fetch and as many to fill with zeros. Takes 8
    /// bytes per frame of the budget, and 32 KiB for each GiB of the guest, which are allocated
    /// when a frame of that GiB first faults or is first planned.
    #[must_use]
    pub fn new(locality: Arc<LocalityOrder>, budget: usize) -> Self {
        let frames = locality.frames();
        let budget = budget.min(frames as usize);
        let frames = PlannedFrames {
            answer: Answer::Fetch,
            fetch: Vec::with_capacity(budget),
            zero: Vec::with_capacity(budget),
            asked: None,
            planned: LazyTable::new(frames.div_ceil(64) as usize),
        };
        Self { locality, frames, budget, allows_zeros: true }
    }

    /// Sets whether plans may have zeros, as they may unless told otherwise. Engines that fetch free
    /// frames allow none.
    pub fn allow_zeros(&mut self, allows_zeros: bool) {
        self.allows_zeros = allows_zeros;
    }

    /// Where the bytes of the faulting frame come from.
    #[must_use]
    pub fn answer(&self) -> Answer {
        self.frames.answer
    }

    /// Frames to fetch from the parent beside the faulting one, in descending priority.
    #[must_use]
    pub fn fetch(&self) -> &[FrameIndex] {
        &self.frames.fetch
    }

    /// Frames to fill with zeros locally, beside the faulting one.
    #[must_use]
    pub fn zero(&self) -> &[FrameIndex] {
        &self.frames.zero
    }

    /// Clears the plan for the answer to a fault on `asked`, or for a background batch if `asked`
    /// is `None`. `presence` says which frames are present or being fetched.
    pub fn begin<'a>(
        &'a mut self,
        presence: &'a dyn Presence,
        asked: Option<FrameIndex>,
    ) -> Planner<'a> {
        let plan = &mut self.frames;
        for frame in plan.fetch.drain(..).chain(plan.zero.drain(..)).chain(plan.asked) {
            let (word, bit) = bit_of(frame);
            if let Some(word) = plan.planned.made(word) {
                word.set(word.get() & !bit);
            }
        }
        plan.answer = Answer::Fetch;
        plan.asked = asked;
        if let Some(asked) = asked {
            let (word, bit) = bit_of(asked);
            if let Some(word) = plan.planned.get(word) {
                word.set(word.get() | bit);
            }
        }
        let room = self.budget;
        let zero_room = if self.allows_zeros { room } else { 0 };
        let allows_zeros = self.allows_zeros;
        Planner { locality: &self.locality, plan, presence, asked, room, zero_room, allows_zeros }
    }
}

/// Position of a frame's bit: the index of the word, and the mask within it.
fn bit_of(frame: FrameIndex) -> (usize, u64) {
    (frame.as_usize() / 64, 1 << (frame.0 % 64))
}

/// Fills a plan, and rejects frames that no plan may hold.
pub struct Planner<'a> {
    locality: &'a Arc<LocalityOrder>,
    plan: &'a mut PlannedFrames,
    presence: &'a dyn Presence,
    asked: Option<FrameIndex>,
    room: usize,
    zero_room: usize,
    allows_zeros: bool,
}

impl<'a> Planner<'a> {
    /// The guest that the plan is for. The reference does not borrow the planner: a policy plans
    /// frames while it reads the order.
    #[must_use]
    pub fn locality(&self) -> &'a Arc<LocalityOrder> {
        self.locality
    }

    /// How many more frames can be fetched.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room
    }

    /// Whether free frames may be filled with zeros. Otherwise they are fetched like all others.
    #[must_use]
    pub fn allows_zeros(&self) -> bool {
        self.allows_zeros
    }

    /// How many more frames can be filled with zeros; 0 if none may be.
    #[must_use]
    pub fn zero_room(&self) -> usize {
        self.zero_room
    }

    /// Lowers the number of frames that can be fetched, and the number that can be filled with
    /// zeros.
    pub fn limit(&mut self, frames: usize) {
        self.room = self.room.min(frames);
        self.zero_room = self.zero_room.min(frames);
    }

    /// Frames that are planned to be fetched so far.
    #[must_use]
    pub fn planned(&self) -> &[FrameIndex] {
        &self.plan.fetch
    }

    /// Whether a frame is neither present, being fetched, nor planned.
    #[must_use]
    pub fn is_absent(&self, frame: FrameIndex) -> bool {
        let (word, bit) = bit_of(frame);
        let is_planned = || self.plan.planned.made(word).is_some_and(|word| word.get() & bit != 0);
        frame.0 < self.locality.frames() && !is_planned() && self.presence.is_absent(frame)
    }

    /// Answers the fault with zeros. Returns `false` and changes nothing unless the faulting frame
    /// is free and [may be zeros](Self::allows_zeros).
    pub fn answer_with_zeros(&mut self) -> bool {
        let is_free = self.asked.is_some_and(|frame| self.locality.is_free(frame));
        let may_be_zeros = is_free && self.allows_zeros;
        if may_be_zeros {
            self.plan.answer = Answer::Zero;
        }
        may_be_zeros
    }

    /// Plans to fetch a frame. Returns `false` if the frame is present, being fetched, planned or
    /// outside the guest, or if the budget is used up.
    pub fn fetch(&mut self, frame: FrameIndex) -> bool {
        let fits = self.room > 0 && self.mark(frame);
        if fits {
            self.room -= 1;
            self.plan.fetch.push(frame);
        }
        fits
    }

    /// Plans to fill a frame with zeros. Returns `false` in the cases of [`Planner::fetch`], and if
    /// the frame is not free, or no frames may be filled with zeros.
    pub fn zero(&mut self, frame: FrameIndex) -> bool {
        let fits = self.zero_room > 0 && self.locality.is_free(frame) && self.mark(frame);
        if fits {
            self.zero_room -= 1;
            self.plan.zero.push(frame);
        }
        fits
    }

    /// Plans to fetch a frame unless it is free. Returns `false` in the cases of
    /// [`Planner::fetch`], and if the frame is free.
    pub fn fetch_used(&mut self, frame: FrameIndex) -> bool {
        !self.locality.is_free(frame) && self.fetch(frame)
    }

    /// Marks an absent frame as planned.
    fn mark(&mut self, frame: FrameIndex) -> bool {
        let absent = self.is_absent(frame);
        let (word, bit) = bit_of(frame);
        if absent && let Some(word) = self.plan.planned.get(word) {
            word.set(word.get() | bit);
        }
        absent
    }
}

impl std::fmt::Debug for Planner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planner").field("room", &self.room).finish_non_exhaustive()
    }
}
