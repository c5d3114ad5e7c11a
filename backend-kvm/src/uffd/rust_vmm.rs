//! VMMs of the rust-vmm family: their memory, colored and filled.
//!
//! Such a VMM keeps its guest's RAM in a [`GuestMemoryMmap`]. To color a paused guest, wrap its
//! memory in [`SnapshotMmap`]. To start a clone, create the memory as for a new guest, without a
//! file and without touching it, and start a [`Filling`], which fills it while the vCPUs run.

use super::OnDemand;
use super::own::Part;
use super::running::Running;
use crate::error::{Asked, Error, ErrorKind};
use crate::memory::PageSize;
use crate::sys::Mapping;
use kaleidoscope_core::addr::{FRAME_SIZE, Gpa};
use kaleidoscope_core::clone::{Engine, Stopped};
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout, SnapshotId};
use std::sync::Arc;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

/// The regions of a VMM's memory as a layout.
fn layout(memory: &GuestMemoryMmap) -> Result<MemoryLayout, Error> {
    let regions: Vec<_> =
        memory.iter().map(|r| (Gpa(r.start_addr().raw_value()), r.len())).collect();
    MemoryLayout::new(&regions)
        .map_err(|error| Error::caused_by(ErrorKind::InvalidInput, "the VMM's memory", error))
}

/// A VMM's memory while its guest is paused.
#[derive(Debug)]
pub struct SnapshotMmap {
    memory: GuestMemoryMmap,
    layout: MemoryLayout,
    id: SnapshotId,
}

impl SnapshotMmap {
    /// The memory of a guest whose vCPUs do not run as long as this is used.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when its regions are not of whole frames.
    pub fn new(memory: GuestMemoryMmap) -> Result<Self, Error> {
        Ok(Self { layout: layout(&memory)?, memory, id: SnapshotId::unique() })
    }
}

impl GuestMemory for SnapshotMmap {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        self.layout.bytes_at(gpa, len).ok_or(MemoryError::NotRam { gpa, len })?;
        let read = self.memory.read_slice(buf, GuestAddress(gpa.0));
        read.map_err(|error| MemoryError::Io { gpa, source: std::io::Error::other(error) })
    }

    /// The vCPUs do not run, so that the bytes stay as they are.
    fn snapshot_id(&self) -> Option<SnapshotId> {
        Some(self.id)
    }
}

/// An engine that fills a VMM's memory.
///
/// Drop it only after the clone's vCPUs have ended: from then on the kernel fills missing pages
/// with zeros. When pages can no longer be fetched before that, threads that wait for one keep
/// waiting, and read no zeros. The memory cannot be taken from the guest, since the VMM's own
/// threads may be using it; therefore the callback has to end the VMM.
#[derive(Debug)]
pub struct Filling(Running);

impl Filling {
    /// Starts to fill memory that has not been touched: private, anonymous, with the regions of the
    /// parent. `ended` is called when pages can no longer be fetched.
    ///
    /// # Errors
    /// [`Error`] when the memory is not the parent's in form, or the system refuses.
    pub fn start(
        memory: &GuestMemoryMmap,
        post_copy: OnDemand,
        vcpus: usize,
        ended: impl Fn(&Stopped) + Clone + Send + 'static,
    ) -> Result<Self, Error> {
        let layout = layout(memory)?;
        if layout != *post_copy.locality.map().layout() {
            return Err(Error::input("the memory has other regions than the parent's"));
        }
        if post_copy.cache.is_some() || memory.iter().any(|region| region.file_offset().is_some()) {
            return Err(Error::input("the memory has to be anonymous, without a cache"));
        }
        if post_copy.pages != PageSize::Small {
            return Err(Error::input("a VMM's memory has to be of 4 KiB pages"));
        }
        let mut next = 0;
        let mut parts = Vec::new();
        for region in memory.iter() {
            let frames = u32::try_from(region.len() / FRAME_SIZE).unwrap_or(u32::MAX);
            let mapping = Mapping::of_region(region.get_mmap()).asked("taking a VMM's memory")?;
            parts.push(Part {
                mapping: Arc::new(mapping),
                frames: next..next.saturating_add(frames),
            });
            next = next.saturating_add(frames);
        }
        let ended = move |why: &Stopped, take: &dyn Fn()| {
            take();
            ended(why);
        };
        Ok(Self(Running::start_own(post_copy, &parts, vcpus, ended)?))
    }

    /// The engine: for statistics, and for giving memory back.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        self.0.engine()
    }
}
