//! Memory files that another program maps, and that are filled through a mapping of this process.

use super::memory::{UserfaultMemory, Watched};
use super::shard::Shard;
use crate::error::{Asked, Error};
use crate::memory::PageSize;
use crate::sys::{Descriptor, Mapping};
use linux_raw_sys::general::UFFD_FEATURE_MISSING_SHMEM;
use std::ops::Range;
use std::sync::Arc;

/// What failed, and what helps, when a userfaultfd cannot be opened.
const RIGHTS: &str = "filling a clone's memory file (userfaultfd: as root, with the right to open \
     /dev/userfaultfd, or with vm.unprivileged_userfaultfd = 1)";

/// Frames that a shared mapping of a file shows.
#[derive(Debug)]
pub(crate) struct FilePart {
    pub(crate) mapping: Arc<Mapping>,
    /// The byte of the mapping at which the first frame begins.
    pub(crate) start: u64,
    pub(crate) frames: Range<u32>,
}

impl UserfaultMemory {
    /// Memory that consists of these parts. The other program asks for pages by messages.
    ///
    /// The descriptors report nothing, because this process touches none of the pages. They put
    /// each page into its file as a whole and once. The kernel does not report pages that the other
    /// program gives back (fallocate(2)); a page that is asked for after it was given back is
    /// filled with zeros (`PageInstaller::wake`).
    pub(crate) fn of_files(parts: Vec<FilePart>) -> Result<Self, Error> {
        let (mut shards, mut watched) = (Vec::new(), Vec::new());
        for FilePart { mapping, start, frames } in parts {
            let descriptor = Descriptor::open(UFFD_FEATURE_MISSING_SHMEM.into());
            let descriptor = Arc::new(descriptor.permitted(RIGHTS)?);
            let address = mapping.address().saturating_add(start);
            let (pages, mapping) = (PageSize::Small, Some(mapping));
            let shard =
                Shard { descriptor: Arc::clone(&descriptor), address, frames, pages, mapping };
            shard.descriptor.register(shard.addresses()).permitted(RIGHTS)?;
            let at = vec![shards.len()];
            watched.push(Watched { descriptor, shards: at, reports_removal: false });
            shards.push(shard);
        }
        Ok(Self::with(shards, watched, None, PageSize::Small, Arc::default()))
    }
}
