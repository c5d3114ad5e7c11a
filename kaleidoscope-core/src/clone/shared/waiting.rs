//! The requests of each sibling, and the frames that are ready for it.

use super::pages::Content;
use crate::addr::FrameIndex;
use crate::clone::ports::Priority;
use foldhash::fast::RandomState;
use parking_lot::Condvar;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Pages that are held for a sibling beyond the bound, until it takes them. Further ready pages
/// must still be cached when the sibling takes them, or are fetched again.
pub const HELD: usize = 64;

/// A frame that is ready for a sibling.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) frame: FrameIndex,
    /// The content; `None` if it must be looked up in the cache.
    pub(super) content: Option<Content>,
}

/// The requests of a sibling that it has not received.
#[derive(Debug, Default)]
pub(super) struct SiblingRequests {
    /// Priority of each requested frame, until the sibling has received it.
    wanted: HashMap<u32, Priority, RandomState>,
    /// Ready frames, in the order of arrival.
    urgent: VecDeque<Ready>,
    prefetched: VecDeque<Ready>,
    /// Number of entries of both queues that hold a page.
    held: usize,
    pub(super) ready_signal: Arc<Condvar>,
}

/// How a request changed the sibling's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RequestChange {
    New,
    MoreUrgent,
    Again,
}

impl SiblingRequests {
    /// Records a request for a frame.
    pub(super) fn request(&mut self, frame: FrameIndex, priority: Priority) -> RequestChange {
        match self.wanted.get_mut(&frame.0) {
            None => {
                self.wanted.insert(frame.0, priority);
                RequestChange::New
            }
            Some(before) if *before < priority => {
                *before = priority;
                RequestChange::MoreUrgent
            }
            Some(_) => RequestChange::Again,
        }
    }

    /// Makes a requested frame ready; ignores frames that are not requested. Returns whether the
    /// sibling must be notified: if another frame was already ready, it has been notified or is not
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

    /// Moves a ready frame to the urgent queue.
    pub(super) fn make_urgent(&mut self, frame: FrameIndex) {
        let at = self.prefetched.iter().position(|ready| ready.frame == frame);
        if let Some(ready) = at.and_then(|at| self.prefetched.remove(at)) {
            self.urgent.push_back(ready);
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.urgent.is_empty() || !self.prefetched.is_empty()
    }

    /// Takes the next ready frame, urgent ones first. The frame stays requested until
    /// [`SiblingRequests::given`] is called.
    pub(super) fn take(&mut self) -> Option<Ready> {
        let ready = self.urgent.pop_front().or_else(|| self.prefetched.pop_front())?;
        self.held -= usize::from(matches!(ready.content, Some(Content::Page(_))));
        Some(ready)
    }

    /// Records that the sibling has received a frame.
    pub(super) fn given(&mut self, frame: FrameIndex) {
        self.wanted.remove(&frame.0);
    }
}
