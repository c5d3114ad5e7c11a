//! The state of every frame of a clone: one atomic byte each.
//!
//! ```text
//!              plan            ask               arrive           placed
//!   absent ─────────► queued ───────► requested ────────► placing ───────► present
//!     │  ▲              │                 ▲  │               │ ▲              │
//!     │  └──── unplan ──┘                 │  └─ unavailable  │ └── touched ─ staged
//!     └─────────────── fault ─────────────┘                  └─ stage ───────►
//!   any of them but placing ── removed ──► removed ── fault (zeros) ──► placing ──► refilled ── fault ──► placing
//!   absent ── when the engine starts ──► shown
//! ```
//!
//! Every change is one compare-and-swap on the frame's byte, so that of several threads exactly one
//! gets to place a frame; the others drop what they brought or wait. A thread that waits first sets
//! [`WANTED`] in the same byte: whoever changes the frame then sees that somebody waits, or the
//! waiter sees the change.

use crate::addr::FrameIndex;
use crate::memory::LazyTable;
use crate::prefetch::Presence;
use crate::sync::{AtomicU8, Ordering};

/// Bits of a state that hold its phase.
const PHASE: u8 = 0x0f;

/// A vCPU waits for the frame.
const WANTED: u8 = 0x10;

/// The frame was planned before anybody asked for it.
const PREFETCHED: u8 = 0x20;

/// The background fills the frame; nobody predicted its use.
const FILL: u8 = 0x40;

/// The frame is being filled with zeros that it may hold already; it was refilled before.
const REFILLED: u8 = 0x80;

/// Where a frame is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum Phase {
    /// With the parent, and nobody has asked for it.
    Absent = 0,
    /// Planned; the source does not know yet.
    Queued = 1,
    /// The source was asked.
    Requested = 2,
    /// One thread is filling or emptying it.
    Installing = 3,
    /// Its bytes are at hand, but not in the clone's memory.
    Staged = 4,
    /// In the clone's memory.
    Present = 5,
    /// The guest gave it back: zeros on the next touch.
    Removed = 6,
    /// The snapshot image does not hold it.
    Unavailable = 7,
    /// Given back, and filled with zeros since. Not simply present: the event that frames are given
    /// back comes before they are emptied, and whatever is placed in between is lost again. So
    /// a fault on such a frame may be true.
    Refilled = 8,
    /// In the clone's memory from the start, which is somebody else's there.
    Mapped = 9,
}

impl Phase {
    fn of(state: u8) -> Self {
        match state & PHASE {
            0 => Self::Absent,
            1 => Self::Queued,
            2 => Self::Requested,
            3 => Self::Installing,
            4 => Self::Staged,
            5 => Self::Present,
            6 => Self::Removed,
            8 => Self::Refilled,
            9 => Self::Mapped,
            // Only phases are ever stored.
            _ => Self::Unavailable,
        }
    }
}

/// What came with a frame's phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags {
    /// A vCPU waits.
    pub(crate) wanted: bool,
    /// It was planned before anybody asked.
    pub(crate) prefetched: bool,
    /// The background fills it.
    pub(crate) fill: bool,
    /// It was given back, and has been filled with zeros before.
    pub(crate) refilled: bool,
}

impl Flags {
    fn of(state: u8) -> Self {
        Self {
            wanted: state & WANTED != 0,
            prefetched: state & PREFETCHED != 0,
            fill: state & FILL != 0,
            refilled: state & REFILLED != 0,
        }
    }

    /// Whether the frame was asked for ahead of any touch.
    pub(crate) fn is_speculative(self) -> bool {
        self.prefetched || self.fill
    }
}

/// What a thread with a fault has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Step {
    /// Ask the source: the frame is this thread's to ask for.
    Request,
    /// Wait, and be the first to: raise the frame's priority.
    Expedite,
    /// Wait; the frame is on its way, or changed just now: look again.
    Wait,
    /// Place the staged bytes. The thread owns the frame (it is placing).
    InstallStaged,
    /// Fill it with zeros. The thread owns the frame (it is placing).
    InstallZeros,
    /// Nothing: it is there.
    Present,
    /// Stop: nobody has its bytes.
    Unavailable,
}

/// What happened to a frame that the guest gave back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BeforeRemoval {
    /// What it was before.
    pub(crate) phase: Phase,
    /// What came with it.
    pub(crate) flags: Flags,
}

/// The states of all frames. Creating them takes no time in proportion to their number: what was
/// never looked up is absent.
#[derive(Debug)]
pub(crate) struct FrameStates {
    states: LazyTable<AtomicU8>,
}

impl FrameStates {
    /// So many frames, all absent.
    pub(crate) fn new(frames: u32) -> Self {
        Self { states: LazyTable::new(frames as usize) }
    }

    /// A frame's state; `None` past the end.
    fn load(&self, frame: FrameIndex) -> Option<u8> {
        let at = frame.as_usize();
        let absent = (at < self.states.len()).then_some(Phase::Absent as u8);
        self.states.made(at).map(|state| state.load(Ordering::Acquire)).or(absent)
    }

    /// Changes a frame's state as long as `next` has one for it; returns the state before, or
    /// `None` when `next` had none or there is no such frame.
    fn change(&self, frame: FrameIndex, mut next: impl FnMut(u8) -> Option<u8>) -> Option<u8> {
        let state = self.states.get(frame.as_usize())?;
        // The bytes of the page and its state are published together: whoever sees `present` may
        // read the page.
        state.fetch_update(Ordering::AcqRel, Ordering::Acquire, &mut next).ok()
    }

    /// Changes a frame from one phase to another, keeping these flags.
    fn step(&self, frame: FrameIndex, from: Phase, to: Phase, keep: u8) -> Option<Flags> {
        let next = |state| (Phase::of(state) == from).then_some(to as u8 | state & keep);
        self.change(frame, next).map(Flags::of)
    }

    /// A frame's phase; [`Phase::Unavailable`] for a frame that does not exist.
    pub(crate) fn phase(&self, frame: FrameIndex) -> Phase {
        self.load(frame).map_or(Phase::Unavailable, Phase::of)
    }

    /// Whether a frame is in the clone's memory because of a plan, not of a touch.
    pub(crate) fn is_prefetched(&self, frame: FrameIndex) -> bool {
        let state = self.load(frame).unwrap_or(0);
        Phase::of(state) == Phase::Present && Flags::of(state).prefetched
    }

    /// A vCPU touched the frame: says what is to be done, and takes note that somebody waits where
    /// that is waiting.
    pub(crate) fn fault(&self, frame: FrameIndex) -> Step {
        let next = |state| match Phase::of(state) {
            Phase::Absent | Phase::Queued => Some(Phase::Requested as u8 | WANTED),
            Phase::Requested | Phase::Installing => (state & WANTED == 0).then_some(state | WANTED),
            Phase::Staged | Phase::Removed => {
                Some(Phase::Installing as u8 | WANTED | state & PREFETCHED)
            }
            // How it was is kept in the flag, for the owner to tell what to count and to leave it
            // as it found it.
            Phase::Refilled => Some(Phase::Installing as u8 | WANTED | REFILLED),
            Phase::Present | Phase::Mapped | Phase::Unavailable => None,
        };
        match self.change(frame, next).map(Phase::of) {
            Some(Phase::Absent | Phase::Queued) => Step::Request,
            Some(Phase::Requested) => Step::Expedite,
            Some(Phase::Installing) => Step::Wait,
            Some(Phase::Staged) => Step::InstallStaged,
            Some(Phase::Removed | Phase::Refilled) => Step::InstallZeros,
            Some(Phase::Present | Phase::Mapped | Phase::Unavailable) | None => {
                match self.phase(frame) {
                    Phase::Present | Phase::Mapped => Step::Present,
                    Phase::Unavailable => Step::Unavailable,
                    Phase::Absent
                    | Phase::Queued
                    | Phase::Requested
                    | Phase::Installing
                    | Phase::Staged
                    | Phase::Removed
                    | Phase::Refilled => Step::Wait,
                }
            }
        }
    }

    /// Whether a waiting thread has to wait on.
    pub(crate) fn is_in_flight(&self, frame: FrameIndex) -> bool {
        matches!(self.phase(frame), Phase::Requested | Phase::Installing)
    }

    /// Takes note of a frame that is in the clone's memory from the start; `false` when it is not
    /// absent.
    pub(crate) fn set_mapped(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Absent, Phase::Mapped, 0).is_some()
    }

    /// Plans an absent frame.
    pub(crate) fn plan(&self, frame: FrameIndex) -> bool {
        let queued = Phase::Queued as u8 | PREFETCHED;
        self.change(frame, |state| (Phase::of(state) == Phase::Absent).then_some(queued)).is_some()
    }

    /// Gives up a planned frame that the source does not know of.
    pub(crate) fn unplan(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Queued, Phase::Absent, 0).is_some()
    }

    /// A planned frame is about to be asked for; `false` when something overtook the plan.
    pub(crate) fn request(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Queued, Phase::Requested, PREFETCHED).is_some()
    }

    /// An absent frame is about to be asked for by the background's filling.
    pub(crate) fn request_fill(&self, frame: FrameIndex) -> bool {
        let requested = Phase::Requested as u8 | FILL;
        let next = |state| (Phase::of(state) == Phase::Absent).then_some(requested);
        self.change(frame, next).is_some()
    }

    /// Takes an absent frame to fill it with zeros ahead of any touch; the thread owns it then (it
    /// is placing).
    pub(crate) fn claim_for_zeros(&self, frame: FrameIndex) -> bool {
        let installing = Phase::Installing as u8 | PREFETCHED;
        let next = |state| (Phase::of(state) == Phase::Absent).then_some(installing);
        self.change(frame, next).is_some()
    }

    /// A frame's bytes came: the thread owns the frame (it is placing), or drops the bytes when
    /// `None`.
    pub(crate) fn begin_install(&self, frame: FrameIndex) -> Option<Flags> {
        self.step(frame, Phase::Requested, Phase::Installing, WANTED | PREFETCHED | FILL)
    }

    /// The owner could not place the frame's bytes now, keeps them, and will try again.
    pub(crate) fn defer_install(&self, frame: FrameIndex) {
        self.step(frame, Phase::Installing, Phase::Requested, WANTED | PREFETCHED | FILL);
    }

    /// The owner did not fill a frame that was given back, and leaves it as it found it. Says
    /// whether somebody waits.
    pub(crate) fn keep_removed(&self, frame: FrameIndex) -> Flags {
        let next = |state| {
            let found = if Flags::of(state).refilled { Phase::Refilled } else { Phase::Removed };
            (Phase::of(state) == Phase::Installing).then_some(found as u8)
        };
        self.change(frame, next).map(Flags::of).unwrap_or_default()
    }

    /// The owner filled a frame that was given back with zeros. Says whether somebody waits, and
    /// whether it had been refilled before.
    pub(crate) fn finish_refill(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Refilled, 0).unwrap_or_default()
    }

    /// The owner placed the frame. Says whether somebody waits.
    pub(crate) fn finish_install(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Present, PREFETCHED).unwrap_or_default()
    }

    /// The owner put the bytes aside; `false` when somebody waits for them and they must be placed.
    pub(crate) fn stage(&self, frame: FrameIndex) -> bool {
        let staged = Phase::Staged as u8 | PREFETCHED;
        let installing = Phase::Installing as u8;
        self.change(frame, |state| (state & (PHASE | WANTED) == installing).then_some(staged))
            .is_some()
    }

    /// The owner of a frame that was staged could not place it and stages it again. Says whether
    /// somebody else waits.
    pub(crate) fn restage(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Staged, PREFETCHED).unwrap_or_default()
    }

    /// Takes a staged frame to place it before anybody touches it; the thread owns it then (it is
    /// placing).
    pub(crate) fn claim_staged(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Staged, Phase::Installing, PREFETCHED).is_some()
    }

    /// Staged bytes were dropped.
    pub(crate) fn drop_staged(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Staged, Phase::Absent, 0).is_some()
    }

    /// Takes a frame that was prefetched, to empty it again; the thread owns it then (it is
    /// placing).
    pub(crate) fn claim_for_eviction(&self, frame: FrameIndex) -> bool {
        let present = Phase::Present as u8 | PREFETCHED;
        let installing = Phase::Installing as u8 | PREFETCHED;
        self.change(frame, |state| (state == present).then_some(installing)).is_some()
    }

    /// The owner found that the clone uses the frame, and leaves it where it is. Says whether
    /// somebody waits.
    pub(crate) fn keep_used(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Present, 0).unwrap_or_default()
    }

    /// The owner emptied the frame. Says whether somebody waits.
    pub(crate) fn set_absent(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Absent, 0).unwrap_or_default()
    }

    /// Nobody has the frame's bytes.
    pub(crate) fn set_unavailable(&self, frame: FrameIndex) -> Option<Flags> {
        self.step(frame, Phase::Requested, Phase::Unavailable, 0)
    }

    /// The guest gave a frame back. Must not be called while a frame is placed; see the engine's
    /// gate.
    pub(crate) fn set_removed(&self, frame: FrameIndex) -> Option<BeforeRemoval> {
        let before = self.change(frame, |_| Some(Phase::Removed as u8))?;
        Some(BeforeRemoval { phase: Phase::of(before), flags: Flags::of(before) })
    }
}

impl Presence for FrameStates {
    fn is_absent(&self, frame: FrameIndex) -> bool {
        self.phase(frame) == Phase::Absent
    }
}
