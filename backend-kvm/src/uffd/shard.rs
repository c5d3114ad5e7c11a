//! A run of frames whose memory one userfaultfd fills.

use crate::memory::PageSize;
use crate::sys::{Descriptor, Mapping};
use kaleidoscope_core::addr::FRAME_SIZE;
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;

/// Consecutive frames at consecutive addresses.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) descriptor: Arc<Descriptor>,
    /// Address of the first frame, in the process that opened the descriptor.
    pub(super) address: u64,
    pub(super) frames: Range<u32>,
    pub(super) pages: PageSize,
    /// The memory, where it is mapped in this process.
    pub(super) mapping: Option<Arc<Mapping>>,
}

impl Shard {
    /// Frames at an address of the process that opened the descriptor and registered the range.
    pub(super) fn foreign(
        descriptor: Arc<Descriptor>,
        address: u64,
        frames: Range<u32>,
        pages: PageSize,
    ) -> Self {
        Self { descriptor, address, frames, pages, mapping: None }
    }

    /// Addresses of frames of the shard.
    pub(super) fn addresses_of(&self, frames: Range<u32>) -> Range<u64> {
        let at = |frame: u32| {
            self.address + u64::from(frame.saturating_sub(self.frames.start)) * FRAME_SIZE
        };
        at(frames.start)..at(frames.end)
    }

    /// Addresses of the shard, to the end of its last page.
    pub(super) fn addresses(&self) -> Range<u64> {
        let addresses = self.addresses_of(self.frames.clone());
        let page = self.pages.bytes() as u64;
        addresses.start..addresses.end.next_multiple_of(page)
    }

    /// Fills the page that begins with a frame.
    pub(super) fn fill(&self, start: u32, bytes: &[u8]) -> Result<(), Errno> {
        let address = self.addresses_of(start..start).start;
        self.descriptor.copy(address, bytes).map_err(|(_, error)| error)
    }

    /// The frame at an address; `None` outside of the shard.
    pub(super) fn frame_at(&self, address: u64) -> Option<u32> {
        let frame = address.checked_sub(self.address)? / FRAME_SIZE;
        let frame = self.frames.start.checked_add(u32::try_from(frame).ok()?)?;
        // The last page may have room that is no frame's: a touch there counts as its last frame's.
        let is_inside = self.addresses().contains(&address);
        is_inside.then(|| frame.min(self.frames.end.saturating_sub(1)))
    }

    /// The frames whose memory a range of addresses touches; `None` for none.
    pub(super) fn frames_in(&self, range: &Range<u64>) -> Option<Range<u32>> {
        let own = self.addresses_of(self.frames.clone());
        let (start, end) = (range.start.max(own.start), range.end.min(own.end));
        if start >= end {
            return None;
        }
        let frame = |address: u64| {
            let offset = address.saturating_sub(own.start) / FRAME_SIZE;
            self.frames.start.saturating_add(u32::try_from(offset).unwrap_or(u32::MAX))
        };
        Some(frame(start)..frame(end - 1).saturating_add(1))
    }
}
