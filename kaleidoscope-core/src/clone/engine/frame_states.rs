//! The state of every frame of a clone, in one atomic byte per frame.
//!
//! ```text
//!          plan          request           begin_install             finish_install
//!  absent ──────► queued ───────► requested ────────────► installing ──────────────► present
//!    │                               ▲                    ▲ │  ▲  claim_for_eviction  │
//!    ├──────── fault, request_fill ──┘                    │ │  └──────────────────────┘
//!    │                                                    │ └─ stage ──────────────► staged
//!    │                                                    │     fault, claim_staged   │
//!    └──────── claim_for_zeros ───────────────────────────┴───────────────────────────┘
//!
//!             set_removed           fault              finish_refill             fault
//!  any phase ────────────► removed ──────► installing ──────────────► refilled ───────► installing
//! ```
//!
//! | from | transition | to | reason |
//! |---|---|---|---|
//! | absent | `set_mapped` | mapped | the frame is mapped from the start |
//! | queued | `fault` | requested | a vCPU overtakes the plan |
//! | queued | `unplan` | absent | the plan is dropped |
//! | requested | `set_unavailable` | unavailable | the image does not hold the frame |
//! | installing | `defer_install` | requested | the memory is changing |
//! | installing | `restage` | staged | the memory is changing |
//! | installing | `keep_removed` | removed, refilled | the memory is changing, or has a page |
//! | installing | `keep_used` | present | the clone uses the frame, which is not evicted |
//! | installing | `set_absent` | absent | the frame was evicted, or not zeroed |
//! | staged | `drop_staged` | absent | the staging buffer is full, or memory is short |
//!
//! `set_removed` is called only while the gate is closed, when no frame is installing.
//!
//! Every transition is one compare-and-swap on the frame's byte. Of several threads exactly one
//! moves a frame to *installing*, and so becomes its owner; the others wait, or drop their copy of
//! the page. A thread sets [`WANTED`] in the same byte before it waits. So either the thread that
//! changes the frame sees that a vCPU waits, or the waiting thread sees the change.

use crate::addr::FrameIndex;
use crate::memory::LazyTable;
use crate::prefetch::Presence;
use crate::sync::{AtomicU8, Ordering};

/// The bits of a state that hold the phase.
const PHASE: u8 = 0x0f;

/// Flag: a vCPU waits for the frame.
const WANTED: u8 = 0x10;

/// Flag: the policy planned the frame before any vCPU touched it.
const PREFETCHED: u8 = 0x20;

/// Flag: the background fill requested the frame.
const FILL: u8 = 0x40;

/// Flag of an installing frame: it was refilled before, and so may already hold zeros.
const REFILLED: u8 = 0x80;

/// The phase of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Not in the clone's memory, and not requested.
    Absent = 0,
    /// Planned, and not yet requested.
    Queued = 1,
    /// Requested from the source.
    Requested = 2,
    /// One thread owns the frame: it installs or evicts the page.
    Installing = 3,
    /// In the staging buffer, and not in the clone's memory.
    Staged = 4,
    /// In the clone's memory.
    Present = 5,
    /// Given back by the guest: the next touch installs zeros.
    Removed = 6,
    /// Not in the snapshot image.
    Unavailable = 7,
    /// Given back by the guest, and filled with zeros since. Not the same as present: the removal
    /// event arrives before the kernel empties the frame, so that zeros installed in between are
    /// lost, and the frame may fault again.
    Refilled = 8,
    /// Mapped from the start: the page of a store, shared copy-on-write.
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
            // Only values of `Phase` are ever stored.
            _ => Self::Unavailable,
        }
    }
}

/// The flags beside a frame's phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags {
    /// A vCPU waits for the frame.
    pub(crate) wanted: bool,
    /// The policy planned the frame before any vCPU touched it.
    pub(crate) prefetched: bool,
    /// The background fill requested the frame.
    pub(crate) fill: bool,
    /// The frame was given back, and has been filled with zeros before.
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

    /// Whether the frame was requested ahead of any touch.
    pub(crate) fn is_speculative(self) -> bool {
        self.prefetched || self.fill
    }
}

/// What a thread has to do to answer a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Step {
    /// Request the frame from the source. No other thread requests it.
    Request,
    /// Request the frame again as urgent, then wait: it is in flight, and no vCPU waited for it.
    Expedite,
    /// Wait, then look again: another vCPU waits for the frame, or it is changing.
    Wait,
    /// Install the staged page. This thread owns the frame.
    InstallStaged,
    /// Install zeros. This thread owns the frame.
    InstallZeros,
    /// Nothing: the frame is resident.
    Present,
    /// Stop the clone: the snapshot image does not hold the frame.
    Unavailable,
}

/// The state of a frame before the guest gave it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BeforeRemoval {
    /// The phase before.
    pub(crate) phase: Phase,
    /// The flags before.
    pub(crate) flags: Flags,
}

/// The states of all frames. The table is allocated on first access, so that creating it takes no
/// time in proportion to the number of frames. A frame without an entry is absent.
#[derive(Debug)]
pub(crate) struct FrameStates {
    states: LazyTable<AtomicU8>,
}

impl FrameStates {
    /// States of `frames` frames, all absent.
    pub(crate) fn new(frames: u32) -> Self {
        Self { states: LazyTable::new(frames as usize) }
    }

    /// The state of a frame; `None` past the end.
    fn load(&self, frame: FrameIndex) -> Option<u8> {
        let at = frame.as_usize();
        let absent = (at < self.states.len()).then_some(Phase::Absent as u8);
        self.states.made(at).map(|state| state.load(Ordering::Acquire)).or(absent)
    }

    /// Changes the state of a frame to what `next` returns for it. Returns the state before, or
    /// `None` when `next` returned `None` or the frame is past the end.
    fn change(&self, frame: FrameIndex, mut next: impl FnMut(u8) -> Option<u8>) -> Option<u8> {
        let state = self.states.get(frame.as_usize())?;
        // Release publishes the page together with its state: a thread that sees `Present` may
        // read the page.
        state.fetch_update(Ordering::AcqRel, Ordering::Acquire, &mut next).ok()
    }

    /// Changes a frame from one phase to another, and keeps the flags in `keep`.
    fn step(&self, frame: FrameIndex, from: Phase, to: Phase, keep: u8) -> Option<Flags> {
        let next = |state| (Phase::of(state) == from).then_some(to as u8 | state & keep);
        self.change(frame, next).map(Flags::of)
    }

    /// The phase of a frame; [`Phase::Unavailable`] past the end.
    pub(crate) fn phase(&self, frame: FrameIndex) -> Phase {
        self.load(frame).map_or(Phase::Unavailable, Phase::of)
    }

    /// Whether a frame is resident because of a plan and not of a touch.
    pub(crate) fn is_prefetched(&self, frame: FrameIndex) -> bool {
        let state = self.load(frame).unwrap_or(0);
        Phase::of(state) == Phase::Present && Flags::of(state).prefetched
    }

    /// Records that a vCPU touched the frame, and returns what its thread has to do. Sets
    /// [`WANTED`] if the thread will wait.
    pub(crate) fn fault(&self, frame: FrameIndex) -> Step {
        let next = |state| match Phase::of(state) {
            Phase::Absent | Phase::Queued => Some(Phase::Requested as u8 | WANTED),
            Phase::Requested | Phase::Installing => (state & WANTED == 0).then_some(state | WANTED),
            Phase::Staged | Phase::Removed => {
                Some(Phase::Installing as u8 | WANTED | state & PREFETCHED)
            }
            // The flag tells the owner what to count, and to which phase to return the frame.
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

    /// Whether the frame is requested or installing, so that a waiting thread must go on waiting.
    pub(crate) fn is_in_flight(&self, frame: FrameIndex) -> bool {
        matches!(self.phase(frame), Phase::Requested | Phase::Installing)
    }

    /// Whether a vCPU waits for the frame.
    pub(crate) fn is_wanted(&self, frame: FrameIndex) -> bool {
        self.load(frame).is_some_and(|state| Flags::of(state).wanted)
    }

    /// Records that an absent frame is mapped from the start; `false` when it is not absent.
    pub(crate) fn set_mapped(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Absent, Phase::Mapped, 0).is_some()
    }

    /// Moves an absent frame to queued; `false` when it is not absent.
    pub(crate) fn plan(&self, frame: FrameIndex) -> bool {
        let queued = Phase::Queued as u8 | PREFETCHED;
        self.change(frame, |state| (Phase::of(state) == Phase::Absent).then_some(queued)).is_some()
    }

    /// Returns a queued frame to absent; `false` when it is not queued.
    pub(crate) fn unplan(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Queued, Phase::Absent, 0).is_some()
    }

    /// Moves a queued frame to requested; `false` when it is no longer queued.
    pub(crate) fn request(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Queued, Phase::Requested, PREFETCHED).is_some()
    }

    /// Moves an absent frame to requested, for the background fill; `false` when it is not absent.
    pub(crate) fn request_fill(&self, frame: FrameIndex) -> bool {
        let requested = Phase::Requested as u8 | FILL;
        let next = |state| (Phase::of(state) == Phase::Absent).then_some(requested);
        self.change(frame, next).is_some()
    }

    /// Claims an absent frame, to fill it with zeros ahead of any touch. On `true` the thread owns
    /// the frame.
    pub(crate) fn claim_for_zeros(&self, frame: FrameIndex) -> bool {
        let installing = Phase::Installing as u8 | PREFETCHED;
        let next = |state| (Phase::of(state) == Phase::Absent).then_some(installing);
        self.change(frame, next).is_some()
    }

    /// Claims a requested frame whose page has arrived. On `Some` the thread owns the frame; on
    /// `None` it drops the page.
    pub(crate) fn begin_install(&self, frame: FrameIndex) -> Option<Flags> {
        self.step(frame, Phase::Requested, Phase::Installing, WANTED | PREFETCHED | FILL)
    }

    /// The owner could not install the page now. It keeps the page and will claim the frame again.
    pub(crate) fn defer_install(&self, frame: FrameIndex) {
        self.step(frame, Phase::Installing, Phase::Requested, WANTED | PREFETCHED | FILL);
    }

    /// The owner did not fill a frame that was given back: returns it to removed or refilled. The
    /// flags tell whether a vCPU waits.
    pub(crate) fn keep_removed(&self, frame: FrameIndex) -> Flags {
        let next = |state| {
            let found = if Flags::of(state).refilled { Phase::Refilled } else { Phase::Removed };
            (Phase::of(state) == Phase::Installing).then_some(found as u8)
        };
        self.change(frame, next).map(Flags::of).unwrap_or_default()
    }

    /// The owner filled a frame that was given back with zeros. The flags tell whether a vCPU
    /// waits, and whether the frame had been refilled before.
    pub(crate) fn finish_refill(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Refilled, 0).unwrap_or_default()
    }

    /// The owner installed the page. The flags tell whether a vCPU waits.
    pub(crate) fn finish_install(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Present, PREFETCHED).unwrap_or_default()
    }

    /// The owner stages the page; `false` when a vCPU waits, so that the page must be installed.
    pub(crate) fn stage(&self, frame: FrameIndex) -> bool {
        let staged = Phase::Staged as u8 | PREFETCHED;
        let installing = Phase::Installing as u8;
        self.change(frame, |state| (state & (PHASE | WANTED) == installing).then_some(staged))
            .is_some()
    }

    /// The owner could not install a staged page, and stages it again. The flags tell whether a
    /// vCPU waits.
    pub(crate) fn restage(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Staged, PREFETCHED).unwrap_or_default()
    }

    /// Claims a staged frame, to install it before any touch. On `true` the thread owns the
    /// frame.
    pub(crate) fn claim_staged(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Staged, Phase::Installing, PREFETCHED).is_some()
    }

    /// Returns a staged frame to absent, so that its page can be dropped; `false` when it is not
    /// staged.
    pub(crate) fn drop_staged(&self, frame: FrameIndex) -> bool {
        self.step(frame, Phase::Staged, Phase::Absent, 0).is_some()
    }

    /// Claims a prefetched frame that is present, to evict it. On `true` the thread owns the
    /// frame.
    pub(crate) fn claim_for_eviction(&self, frame: FrameIndex) -> bool {
        let present = Phase::Present as u8 | PREFETCHED;
        let installing = Phase::Installing as u8 | PREFETCHED;
        self.change(frame, |state| (state == present).then_some(installing)).is_some()
    }

    /// The owner found that the clone has used the frame: returns it to present, no longer
    /// prefetched. The flags tell whether a vCPU waits.
    pub(crate) fn keep_used(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Present, 0).unwrap_or_default()
    }

    /// The owner leaves the frame empty. The flags tell whether a vCPU waits.
    pub(crate) fn set_absent(&self, frame: FrameIndex) -> Flags {
        self.step(frame, Phase::Installing, Phase::Absent, 0).unwrap_or_default()
    }

    /// The snapshot image does not hold a requested frame; `None` when it is not requested.
    pub(crate) fn set_unavailable(&self, frame: FrameIndex) -> Option<Flags> {
        self.step(frame, Phase::Requested, Phase::Unavailable, 0)
    }

    /// The guest gave a frame back. The caller holds the gate exclusively, so that no frame is
    /// being installed.
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
