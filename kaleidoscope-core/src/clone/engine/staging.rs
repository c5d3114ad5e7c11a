//! Pages near the clone, but not in its memory: a touch of one is a fault, and so says that it was
//! used.

use crate::addr::FrameIndex;
use crate::memory::Page;
use std::collections::{HashMap, VecDeque};

/// Staged pages, the oldest of which gives way when there are too many. Pages of zeros take no
/// memory.
#[derive(Debug)]
pub(crate) struct StagingBuffer {
    pages: HashMap<FrameIndex, Option<Box<Page>>>,
    /// Frames in the order in which they were staged; some are gone.
    order: VecDeque<FrameIndex>,
    /// Buffers to use again.
    spare: Vec<Box<Page>>,
    limit: usize,
}

/// Buffers that are kept for later.
const MAX_SPARE: usize = 64;

impl StagingBuffer {
    /// Room for `limit` pages, none of which is allocated yet.
    pub(crate) fn new(limit: usize) -> Self {
        Self { pages: HashMap::new(), order: VecDeque::new(), spare: Vec::new(), limit }
    }

    /// Whether a page must go before the next one comes.
    pub(crate) fn is_full(&self) -> bool {
        self.pages.len() >= self.limit
    }

    /// Puts a page aside; `None` is a page of zeros.
    pub(crate) fn put(&mut self, frame: FrameIndex, page: Option<&Page>) {
        let page = page.map(|bytes| {
            let mut buffer = self.spare.pop().unwrap_or_else(|| Box::new([0; _]));
            *buffer = *bytes;
            buffer
        });
        self.pages.insert(frame, page);
        self.order.push_back(frame);
        // Frames that are gone must not pile up.
        if self.order.len() > 2 * self.limit.max(16) {
            let pages = &self.pages;
            self.order.retain(|frame| pages.contains_key(frame));
        }
    }

    /// Takes a page out; the inner `None` is a page of zeros.
    pub(crate) fn take(&mut self, frame: FrameIndex) -> Option<Option<Box<Page>>> {
        self.pages.remove(&frame)
    }

    /// Forgets the age of the frame that has been here the longest, and names it. Whoever owns it
    /// then takes it out.
    pub(crate) fn pop_oldest(&mut self) -> Option<FrameIndex> {
        while let Some(frame) = self.order.pop_front() {
            if self.pages.contains_key(&frame) {
                return Some(frame);
            }
        }
        None
    }

    /// Keeps a buffer for later.
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
