//! What is known of each frame, and the pages that are kept.

use crate::addr::FrameIndex;
use crate::clone::ports::{Delivery, Priority};
use crate::memory::Page;
use std::sync::Arc;

/// What upstream said of a frame.
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

/// What is known of a frame.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Nothing: nobody asked for it, or it was evicted.
    Nothing,
    /// It is on its way.
    Asked(Priority),
    /// It is here.
    Here(Content),
}

/// One word per frame: what is known of it, or else the slot of its page plus [`FIRST_SLOT`]. Zero
/// means that nothing is known, so that the table of a guest that is hardly touched takes no
/// memory.
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
    /// Asked for since the hand came by.
    used: bool,
}

/// What is known of each frame; see [the module](super).
#[derive(Debug)]
pub(super) struct FetchedPages {
    frames: Vec<Word>,
    slots: Vec<Slot>,
    bound: usize,
    hand: usize,
}

impl FetchedPages {
    /// A keep for `frames` frames that holds `bound` pages at most (at least one).
    pub(super) fn new(frames: u32, bound: usize) -> Self {
        let most = usize::try_from(Word::MAX - FIRST_SLOT).unwrap_or(usize::MAX);
        let bound = bound.clamp(1, most);
        Self { frames: vec![NOTHING; frames as usize], slots: Vec::new(), bound, hand: 0 }
    }

    /// Whether the guest has the frame.
    pub(super) fn has(&self, frame: FrameIndex) -> bool {
        frame.as_usize() < self.frames.len()
    }

    /// Pages that are kept.
    pub(super) fn pages(&self) -> usize {
        self.slots.len()
    }

    /// What is known of a frame. Its page stays a while longer for that.
    pub(super) fn look_up(&mut self, frame: FrameIndex) -> Known {
        match self.frames.get(frame.as_usize()).copied().unwrap_or(NOTHING) {
            NOTHING => Known::Nothing,
            PREFETCHED => Known::Asked(Priority::Prefetch),
            URGENT => Known::Asked(Priority::Urgent),
            ZERO => Known::Here(Content::Zero),
            UNAVAILABLE => Known::Here(Content::Unavailable),
            slot => match self.slots.get_mut((slot - FIRST_SLOT) as usize) {
                Some(slot) => {
                    slot.used = true;
                    Known::Here(Content::Page(Arc::clone(&slot.page)))
                }
                None => Known::Nothing,
            },
        }
    }

    /// Notes that a frame is on its way. It is not here.
    pub(super) fn ask(&mut self, frame: FrameIndex, priority: Priority) {
        if let Some(word) = self.frames.get_mut(frame.as_usize()) {
            *word = match priority {
                Priority::Prefetch => PREFETCHED,
                Priority::Urgent => URGENT,
            };
        }
    }

    /// Keeps what came of a frame that was on its way.
    pub(super) fn store(&mut self, frame: FrameIndex, content: &Content) {
        let word = match content {
            Content::Page(page) => self.place(frame.0, page),
            Content::Zero => ZERO,
            Content::Unavailable => UNAVAILABLE,
        };
        if let Some(place) = self.frames.get_mut(frame.as_usize()) {
            *place = word;
        }
    }

    fn place(&mut self, frame: u32, page: &Arc<Page>) -> Word {
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

    /// The slot of a page that nobody asked for since the hand came by last. All slots are full.
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
        let is_here = |pages: &mut FetchedPages, n: u32| {
            let known = pages.look_up(FrameIndex(n));
            if let Known::Here(Content::Page(page)) = &known {
                assert_eq!(u32::from(page[17]), n);
                return true;
            }
            assert!(matches!(known, Known::Nothing));
            false
        };
        for n in 0..4 {
            pages.store(FrameIndex(n), &page(n));
        }
        for n in 4..50 {
            assert!(is_here(&mut pages, 0) && is_here(&mut pages, 2));
            pages.store(FrameIndex(n), &page(n));
            assert_eq!(pages.pages(), 4);
        }
        assert!(is_here(&mut pages, 49) && !is_here(&mut pages, 40));
        pages.store(FrameIndex(7), &Content::Zero);
        assert!(matches!(pages.look_up(FrameIndex(7)), Known::Here(Content::Zero)));
        assert!(!pages.has(FrameIndex(100)));
        assert!(matches!(pages.look_up(FrameIndex(100)), Known::Nothing));
    }
}
