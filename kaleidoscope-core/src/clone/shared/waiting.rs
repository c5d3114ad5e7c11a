//! Who waits for which frame, and what is ready for whom.

use super::pages::Content;
use crate::addr::FrameIndex;
use crate::clone::ports::Priority;
use foldhash::fast::RandomState;
use parking_lot::Condvar;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Pages that are held for a sibling beyond the bound, until it takes them. What is ready beyond
/// these must be in the keep when the sibling takes it, or be fetched again.
pub const HELD: usize = 64;

/// A frame that is ready for a sibling.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) frame: FrameIndex,
    /// What came; `None` means: look in the pages.
    pub(super) content: Option<Content>,
}

/// What a sibling asked for and has not been given.
#[derive(Debug, Default)]
pub(super) struct SiblingRequests {
    /// How urgently it wants what is on its way, or ready.
    wanted: HashMap<u32, Priority, RandomState>,
    /// What is ready, in the order in which it came.
    urgent: VecDeque<Ready>,
    prefetched: VecDeque<Ready>,
    /// Entries of both that hold a page.
    held: usize,
    pub(super) news: Arc<Condvar>,
}

/// How a sibling's request changed what it wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    New,
    MoreUrgent,
    Again,
}

impl SiblingRequests {
    /// Notes that the sibling wants a frame.
    pub(super) fn ask(&mut self, frame: FrameIndex, priority: Priority) -> Asked {
        match self.wanted.get_mut(&frame.0) {
            None => {
                self.wanted.insert(frame.0, priority);
                Asked::New
            }
            Some(before) if *before < priority => {
                *before = priority;
                Asked::MoreUrgent
            }
            Some(_) => Asked::Again,
        }
    }

    /// Makes a wanted frame ready. Frames that are not wanted (any more) are passed over. Says
    /// whether the sibling has to be told: when something was ready before, it was, or is not
    /// waiting.
    pub(super) fn make_ready(&mut self, frame: FrameIndex, content: &Content) -> bool {
        let Some(priority) = self.wanted.get(&frame.0) else { return false };
        let is_first = !self.has_ready();
        let is_page = matches!(content, Content::Page(_));
        let hold = !is_page || self.held < HELD;
        self.held += usize::from(is_page && hold);
        let ready = Ready { frame, content: hold.then(|| content.clone()) };
        match priority {
            Priority::Urgent => self.urgent.push_back(ready),
            Priority::Prefetch => self.prefetched.push_back(ready),
        }
        is_first
    }

    /// Puts a frame among the urgent ones if it is ready.
    pub(super) fn hasten(&mut self, frame: FrameIndex) {
        let at = self.prefetched.iter().position(|ready| ready.frame == frame);
        if let Some(ready) = at.and_then(|at| self.prefetched.remove(at)) {
            self.urgent.push_back(ready);
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.urgent.is_empty() || !self.prefetched.is_empty()
    }

    /// The next frame that is ready, urgent ones first. It is still wanted until
    /// [`SiblingRequests::given`] says otherwise.
    pub(super) fn take(&mut self) -> Option<Ready> {
        let ready = self.urgent.pop_front().or_else(|| self.prefetched.pop_front())?;
        self.held -= usize::from(matches!(ready.content, Some(Content::Page(_))));
        Some(ready)
    }

    /// Notes that the sibling has what it wanted.
    pub(super) fn given(&mut self, frame: FrameIndex) {
        self.wanted.remove(&frame.0);
    }
}
