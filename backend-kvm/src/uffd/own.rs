//! Memory of this process that userfaultfds watch: of a machine, or of a VMM in this process.

use super::SharedPageCache;
use super::memory::{UserfaultMemory, Watched};
use super::running::{OnDemand, Running};
use super::shard::Shard;
use crate::error::{Asked, Error};
use crate::memory::PageSize;
use crate::sys::{Descriptor, Mapping};
use kaleidoscope_core::addr::FRAME_SIZE;
use kaleidoscope_core::clone::Stopped;
use linux_raw_sys::general::{
    UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_EXACT_ADDRESS, UFFD_FEATURE_MISSING_HUGETLBFS,
    UFFD_FEATURE_MISSING_SHMEM,
};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;

/// What failed, and what helps, when a userfaultfd cannot be opened.
pub(super) const RIGHTS: &str = "watching a clone's memory (userfaultfd: as root, with the right \
     to open /dev/userfaultfd, or with vm.unprivileged_userfaultfd = 1)";

/// Minimum number of frames per userfaultfd. With fewer, sharing one costs less than having
/// several.
const LEAST_FRAMES: usize = 1 << 13;

/// A mapping of this process, and the frames that it shows, from its first byte on.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) frames: Range<u32>,
}

impl Shard {
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
}

impl UserfaultMemory {
    /// Memory of this process that consists of these parts, in the order of their frames and
    /// without gaps between them, each watched in up to `shards` pieces. With a cache, which the
    /// mapping then shows, pages are kept there and shared. Huge pages are one part, without a
    /// cache.
    pub(crate) fn new(
        parts: &[Part],
        shards: usize,
        cache: Option<Arc<SharedPageCache>>,
        pages: PageSize,
    ) -> Result<Self, Error> {
        if pages == PageSize::Huge && (parts.len() != 1 || cache.is_some()) {
            let what = "memory of huge pages is a clone's own, and in one piece";
            return Err(Error::input(what));
        }
        let mut all = Vec::new();
        for part in parts {
            all.extend(Shard::split(part, shards, pages).permitted(RIGHTS)?);
        }
        let watched = all.iter().zip(0..).map(|(shard, at)| Watched {
            descriptor: Arc::clone(&shard.descriptor),
            shards: vec![at],
            reports_removal: true,
        });
        let watched = watched.collect();
        Ok(Self::with(all, watched, cache, pages, Arc::default()))
    }
}

impl Running {
    /// Starts an engine on memory of this process that consists of these parts, with a thread for
    /// faults of each vCPU up to the number of processors.
    pub(crate) fn start_own(
        on_demand: OnDemand,
        parts: &[Part],
        vcpus: usize,
        ended: impl Fn(&Stopped, &dyn Fn()) + Clone + Send + 'static,
    ) -> Result<Self, Error> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = vcpus.clamp(1, processors);
        let cache = on_demand.cache.clone();
        let pages = UserfaultMemory::new(parts, threads, cache, on_demand.pages)?;
        Self::start(on_demand, Arc::new(pages), threads, ended)
    }
}
