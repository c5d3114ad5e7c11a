//! A run of frames whose memory one userfaultfd fills.

use crate::memory::PageSize;
use crate::sys::{Descriptor, Mapping};
use kaleidoscope_core::addr::FRAME_SIZE;
use linux_raw_sys::general::{
    UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_EXACT_ADDRESS, UFFD_FEATURE_MISSING_HUGETLBFS,
    UFFD_FEATURE_MISSING_SHMEM,
};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;

/// Frames that one userfaultfd watches at least: below that, sharing one costs less than having
/// several.
const LEAST_FRAMES: usize = 1 << 13;

/// A mapping of this process, and the frames that it shows, from its first byte on.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) frames: Range<u32>,
}

/// Consecutive frames at consecutive addresses.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) descriptor: Arc<Descriptor>,
    /// Address of the first frame, in the process that opened the descriptor.
    address: u64,
    pub(super) frames: Range<u32>,
    pages: PageSize,
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

    /// Frames of a mapping of this process, with a descriptor of their own.
    fn own(part: &Part, frames: Range<u32>, pages: PageSize) -> Result<Self, Errno> {
        let features = UFFD_FEATURE_EVENT_REMOVE
            | match pages {
                PageSize::Small => UFFD_FEATURE_MISSING_SHMEM,
                // The policy needs the frame that was touched, not the page.
                PageSize::Huge => UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_EXACT_ADDRESS,
            };
        let descriptor = Arc::new(Descriptor::open(features.into())?);
        let offset = u64::from(frames.start - part.frames.start) * FRAME_SIZE;
        let address = part.mapping.address() + offset;
        let mapping = Some(Arc::clone(&part.mapping));
        let shard = Self { descriptor, address, frames, pages, mapping };
        shard.descriptor.register(shard.addresses())?;
        Ok(shard)
    }

    /// The frames of a part in up to `most` shards, so that faults of several vCPUs do not queue
    /// for one lock of the kernel.
    pub(super) fn split(part: &Part, most: usize, pages: PageSize) -> Result<Vec<Self>, Errno> {
        let frames = part.frames.len();
        let each = frames.div_ceil(most.clamp(1, frames.div_ceil(LEAST_FRAMES).max(1)));
        let each = each.max(1).next_multiple_of(pages.frames() as usize);
        let length = u32::try_from(each).unwrap_or(u32::MAX);
        let starts = part.frames.clone().step_by(each);
        let shard = |start: u32| {
            let end = start.saturating_add(length).min(part.frames.end);
            Self::own(part, start..end, pages)
        };
        starts.map(shard).collect()
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
