//! The staging buffer: prefetched pages outside the clone's memory. The first touch of a staged
//! page faults, which shows that the page was used.

use crate::addr::FrameIndex;
use crate::memory::Page;
use std::collections::{HashMap, VecDeque};

/// A bounded buffer of staged pages, which drops the oldest first. Zero pages take no memory.
#[derive(Debug)]
pub(crate) struct StagingBuffer {
    pages: HashMap<FrameIndex, Option<Box<Page>>>,
    /// Frames in the order in which they were staged. May contain frames that are no longer staged.
    order: VecDeque<FrameIndex>,
    /// Page buffers for reuse.
    spare: Vec<Box<Page>>,
    limit: usize,
}

/// Maximum page buffers that are kept for reuse.
const MAX_SPARE: usize = 64;

impl StagingBuffer {
    /// A buffer of at most `limit` pages. Allocates nothing yet.
    pub(crate) fn new(limit: usize) -> Self {
        Self { pages: HashMap::new(), order: VecDeque::new(), spare: Vec::new(), limit }
    }

    /// Whether a page must be dropped before the next `put`.
    pub(crate) fn is_full(&self) -> bool {
        self.pages.len() >= self.limit
    }

    /// Stages a page; `None` is a zero page.
    pub(crate) fn put(&mut self, frame: FrameIndex, page: Option<&Page>) {
        let page = page.map(|bytes| {
            let mut buffer = self.spare.pop().unwrap_or_else(|| Box::new([0; _]));
            *buffer = *bytes;
            buffer
        });
        self.pages.insert(frame, page);
        self.order.push_back(frame);
        // Bound the number of entries for frames that are no longer staged.
        if self.order.len() > 2 * self.limit.max(16) {
            let pages = &self.pages;
            self.order.retain(|frame| pages.contains_key(frame));
        }
    }

    /// Removes a page and returns it. The inner `None` is a zero page.
    pub(crate) fn take(&mut self, frame: FrameIndex) -> Option<Option<Box<Page>>> {
        self.pages.remove(&frame)
    }

    /// Removes the oldest staged frame from the order and returns it. Its page stays until the
    /// frame's owner calls [`take`](Self::take).
    pub(crate) fn pop_oldest(&mut self) -> Option<FrameIndex> {
        while let Some(frame) = self.order.pop_front() {
            if self.pages.contains_key(&frame) {
                return Some(frame);
            }
        }
        None
    }

    /// Keeps a page buffer for reuse.
    pub(crate) fn recycle(&mut self, page: Option<Box<Page>>) {
        if let Some(page) = page
            && self.spare.len() < MAX_SPARE
        {
            self.spare.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_nothing_piles_up() {
        let mut staging = StagingBuffer::new(4);
        for n in 0..1000 {
            if staging.is_full() {
                let oldest = staging.pop_oldest().unwrap();
                assert_eq!(oldest, FrameIndex(n - 4));
                let page = staging.take(oldest).unwrap();
                assert_eq!(page.is_none(), oldest.0.is_multiple_of(3));
                staging.recycle(page);
            }
            let page = [u8::try_from(n % 251).unwrap(); 4096];
            staging.put(FrameIndex(n), (!n.is_multiple_of(3)).then_some(&page));
            assert!(staging.pages.len() <= 4 && staging.order.len() <= 32);
        }
        assert_eq!(
            staging.take(FrameIndex(998)).unwrap().unwrap()[7],
            u8::try_from(998 % 251).unwrap()
        );
        assert!(staging.take(FrameIndex(998)).is_none());
    }
}
