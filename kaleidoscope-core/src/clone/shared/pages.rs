//! The state of each frame, and the cached pages.

use crate::addr::FrameIndex;
use crate::clone::ports::{Delivery, Priority};
use crate::memory::Page;
use std::sync::Arc;

/// Content of a frame as delivered by upstream.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Page(Arc<Page>),
    Zero,
    Unavailable,
}

impl Content {
    pub(super) fn new(delivery: Delivery<'_>) -> Self {
        match delivery {
            Delivery::Page(_, page) => Self::Page(Arc::new(*page)),
            Delivery::Zero(_) => Self::Zero,
            Delivery::Unavailable(_) => Self::Unavailable,
        }
    }

    pub(super) fn as_delivery(&self, frame: FrameIndex) -> Delivery<'_> {
        match self {
            Self::Page(page) => Delivery::Page(frame, page),
            Self::Zero => Delivery::Zero(frame),
            Self::Unavailable => Delivery::Unavailable(frame),
        }
    }
}

/// State of a frame.
#[derive(Clone, Debug)]
pub(super) enum FrameState {
    /// Never requested, or evicted.
    Absent,
    /// In flight.
    InFlight(Priority),
    /// Cached.
    Cached(Content),
}

/// One word per frame: its state, or the slot of its page plus [`FIRST_SLOT`]. Zero is the initial
/// state, so that the untouched parts of the table take no memory.
type Word = u32;

const NOTHING: Word = 0;
const PREFETCHED: Word = 1;
const URGENT: Word = 2;
const ZERO: Word = 3;
const UNAVAILABLE: Word = 4;
const FIRST_SLOT: Word = 5;

#[derive(Debug)]
struct Slot {
    frame: u32,
    page: Arc<Page>,
    /// Requested since the hand last passed.
    used: bool,
}

/// The shared page cache; see [the module](super).
#[derive(Debug)]
pub(super) struct FetchedPages {
    frames: Vec<Word>,
    slots: Vec<Slot>,
    bound: usize,
    hand: usize,
}

impl FetchedPages {
    /// A cache for `frames` frames that holds at most `bound` pages (at least one).
    pub(super) fn new(frames: u32, bound: usize) -> Self {
        let most = usize::try_from(Word::MAX - FIRST_SLOT).unwrap_or(usize::MAX);
        let bound = bound.clamp(1, most);
        Self { frames: vec![NOTHING; frames as usize], slots: Vec::new(), bound, hand: 0 }
    }

    /// Whether the guest has this frame.
    pub(super) fn has(&self, frame: FrameIndex) -> bool {
        frame.as_usize() < self.frames.len()
    }

    /// Number of cached pages.
    pub(super) fn pages(&self) -> usize {
        self.slots.len()
    }

    /// State of a frame. Marks a cached page as used.
    pub(super) fn look_up(&mut self, frame: FrameIndex) -> FrameState {
        match self.frames.get(frame.as_usize()).copied().unwrap_or(NOTHING) {
            NOTHING => FrameState::Absent,
            PREFETCHED => FrameState::InFlight(Priority::Prefetch),
            URGENT => FrameState::InFlight(Priority::Urgent),
            ZERO => FrameState::Cached(Content::Zero),
            UNAVAILABLE => FrameState::Cached(Content::Unavailable),
            slot => match self.slots.get_mut((slot - FIRST_SLOT) as usize) {
                Some(slot) => {
                    slot.used = true;
                    FrameState::Cached(Content::Page(Arc::clone(&slot.page)))
                }
                None => FrameState::Absent,
            },
        }
    }

    /// Marks an uncached frame as in flight.
    pub(super) fn mark_in_flight(&mut self, frame: FrameIndex, priority: Priority) {
        if let Some(word) = self.frames.get_mut(frame.as_usize()) {
            *word = match priority {
                Priority::Prefetch => PREFETCHED,
                Priority::Urgent => URGENT,
            };
        }
    }

    /// Stores the content of a frame in flight.
    pub(super) fn store(&mut self, frame: FrameIndex, content: &Content) {
        let word = match content {
            Content::Page(page) => self.insert(frame.0, page),
            Content::Zero => ZERO,
            Content::Unavailable => UNAVAILABLE,
        };
        if let Some(slot) = self.frames.get_mut(frame.as_usize()) {
            *slot = word;
        }
    }

    fn insert(&mut self, frame: u32, page: &Arc<Page>) -> Word {
        let new = Slot { frame, page: Arc::clone(page), used: false };
        let slot = if self.slots.len() < self.bound {
            self.slots.push(new);
            self.slots.len() - 1
        } else {
            let slot = self.victim();
            if let Some(old) = self.slots.get_mut(slot) {
                let evicted = std::mem::replace(old, new).frame;
                if let Some(word) = self.frames.get_mut(evicted as usize) {
                    *word = NOTHING;
                }
            }
            slot
        };
        Word::try_from(slot).map_or(NOTHING, |slot| slot + FIRST_SLOT)
    }

    /// Chooses the slot of a page that was not used since the hand last passed. All slots are full.
    fn victim(&mut self) -> usize {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let at = self.hand;
            self.hand += 1;
            match self.slots.get_mut(at) {
                Some(slot) if slot.used => slot.used = false,
                Some(_) | None => return at,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_asked_for_stay() {
        let mut pages = FetchedPages::new(100, 4);
        let page = |n: u32| Content::Page(Arc::new([u8::try_from(n).unwrap(); 4096]));
        let is_cached = |pages: &mut FetchedPages, n: u32| {
            let state = pages.look_up(FrameIndex(n));
            if let FrameState::Cached(Content::Page(page)) = &state {
                assert_eq!(u32::from(page[17]), n);
                return true;
            }
            assert!(matches!(state, FrameState::Absent));
            false
        };
        for n in 0..4 {
            pages.store(FrameIndex(n), &page(n));
        }
        for n in 4..50 {
            assert!(is_cached(&mut pages, 0) && is_cached(&mut pages, 2));
            pages.store(FrameIndex(n), &page(n));
            assert_eq!(pages.pages(), 4);
        }
        assert!(is_cached(&mut pages, 49) && !is_cached(&mut pages, 40));
        pages.store(FrameIndex(7), &Content::Zero);
        assert!(matches!(pages.look_up(FrameIndex(7)), FrameState::Cached(Content::Zero)));
        assert!(!pages.has(FrameIndex(100)));
        assert!(matches!(pages.look_up(FrameIndex(100)), FrameState::Absent));
    }
}
