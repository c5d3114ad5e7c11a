//! What a VM has for RAM.

use super::file::{MemoryFile, bytes_of, frames_of};
use super::freeze::{Copying, Prepared, until_short};
use super::{PageSize, Ram, SnapshotMemory, bytes, runs};
use crate::error::{Asked, KvmError};
use crate::sys::{Mapping, Pages, Sharing, install_slot, own_pages};
use kaleidoscope_core::addr::{FRAME_BYTES, Gpa};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout};
use kvm_ioctls::VmFd;
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Bytes that the guest is kept from while a mapping forgets where they are. On 64 MiB, pieces from
/// 1 to 32 MiB take the same time together.
const PIECE: usize = 4 << 20;

/// Where the bytes come from that the VM has not written.
#[derive(Clone, Debug)]
enum Origin {
    /// It was never snapshot: the mapping is shared, and the file has all that it wrote.
    Fresh(Arc<MemoryFile>),
    /// A snapshot image, of the VM or of its parent: the mapping is private.
    Image(Arc<SnapshotMemory>),
    /// Elsewhere: a handler fills the mapping, which is private.
    Filled,
    /// There is no image, or no mapping any more: a freeze failed halfway.
    Lost,
}

/// A VM's RAM. One contiguous mapping in frame-index order, of which KVM shows the guest a slot per
/// region.
#[derive(Debug)]
pub(crate) struct GuestRam {
    layout: MemoryLayout,
    mapping: Arc<Mapping>,
    origin: Origin,
}

/// The kernel's view of a RAM's frames, one by one.
#[derive(Debug)]
pub(crate) struct FramePages<'a> {
    pages: Pages<'a>,
    frames: u32,
}

impl FramePages<'_> {
    /// Whether a frame has memory of its own; a frame that there is not has none.
    pub(crate) fn is_own(&self, frame: u32) -> Result<bool, KvmError> {
        let offset = frame as usize * FRAME_BYTES;
        let is_own = || self.pages.is_own(offset).asked("reading a page map");
        if frame < self.frames { is_own() } else { Ok(false) }
    }
}

impl GuestRam {
    /// RAM that is all zeros.
    pub(crate) fn new(ram: Ram) -> Result<Self, KvmError> {
        let Ram { layout, pages } = ram;
        let file = Arc::new(MemoryFile::of_pages(bytes(&layout), pages)?);
        // The pool of huge pages has all of the machine's or refuses it, so that looking at its
        // image never lacks one.
        let mapping = Mapping::of_file(file.as_fd(), file.len(), Sharing::Shared);
        let mapping = mapping.asked(match pages {
            PageSize::Small => "mapping guest memory",
            PageSize::Huge => {
                "taking guest memory from the huge pages that are free (vm.nr_hugepages)"
            }
        })?;
        Ok(Self { layout, mapping: Arc::new(mapping), origin: Origin::Fresh(file) })
    }

    /// RAM that reads as an image does, and keeps its writes to itself.
    pub(crate) fn of_image(image: Arc<SnapshotMemory>) -> Result<Self, KvmError> {
        let layout = image.layout().clone();
        let mapping = Arc::new(image.private()?);
        Ok(Self { layout, mapping, origin: Origin::Image(image) })
    }

    /// RAM that a handler fills.
    pub(crate) fn filled(layout: MemoryLayout, mapping: Arc<Mapping>) -> Self {
        Self { layout, mapping, origin: Origin::Filled }
    }

    /// RAM that a handler filled reads as an image does where it was not written, from here on.
    pub(crate) fn based_on(&mut self, image: Arc<SnapshotMemory>) {
        self.origin = Origin::Image(image);
    }

    pub(crate) fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Shows the RAM to the guest.
    pub(crate) fn install(&self, vm: &VmFd) -> Result<(), KvmError> {
        for (slot, region) in (0u32..).zip(self.layout.regions()) {
            let start = region.first_index.as_usize() * FRAME_BYTES;
            let part = start..start + region.frames as usize * FRAME_BYTES;
            install_slot(vm, slot, region.start.gpa().0, &self.mapping, part)
                .asked("giving a VM its memory")?;
        }
        Ok(())
    }

    /// The offset of a range of guest-physical addresses in the mapping.
    fn offset(&self, gpa: Gpa, len: usize) -> Result<usize, KvmError> {
        let range = self.layout.bytes_at(gpa, len);
        range.map(|range| range.start).ok_or(KvmError::NotRam { gpa: gpa.0, len })
    }

    /// Copies bytes of the guest.
    pub(crate) fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), KvmError> {
        let offset = self.offset(gpa, buf.len())?;
        self.mapping.read(offset, buf).asked("reading guest memory")
    }

    /// Overwrites bytes of the guest.
    pub(crate) fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), KvmError> {
        let offset = self.offset(gpa, bytes.len())?;
        self.mapping.write(offset, bytes).asked("writing guest memory")
    }

    /// Bytes of memory that are this RAM's own, as the kernel counts them.
    pub(crate) fn own_bytes(&self) -> Result<u64, KvmError> {
        match &self.origin {
            Origin::Fresh(file) => file.taken(),
            Origin::Image(_) | Origin::Filled | Origin::Lost => {
                let pages = own_pages(&self.mapping);
                let pages = pages.asked("counting a clone's memory (Linux 6.7 or later)")?;
                Ok(pages.iter().map(|run| run.len() as u64).sum())
            }
        }
    }

    /// Whether frames are shared until they are written.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.origin, Origin::Image(_))
    }

    /// Frames that have memory of their own since the image, in order.
    pub(crate) fn written(&self) -> Result<Vec<Range<u32>>, KvmError> {
        if !self.is_shared() {
            return Ok(Vec::new());
        }
        let pages = own_pages(&self.mapping);
        let pages = pages.asked("looking for what a machine wrote (Linux 6.7 or later)")?;
        Ok(pages.iter().map(frames_of).collect())
    }

    /// Frames among them that the image shows from the content store.
    pub(crate) fn diverged(&self) -> Result<Vec<Range<u32>>, KvmError> {
        let written = self.written()?;
        let Origin::Image(image) = &self.origin else { return Ok(Vec::new()) };
        Ok(runs::without(&written, &runs::without(&written, &image.shared())))
    }

    /// What is known of single frames.
    pub(crate) fn pages(&self) -> Result<FramePages<'_>, KvmError> {
        let pages = Pages::of(&self.mapping).asked("opening a page map")?;
        Ok(FramePages { pages, frames: self.layout.frames() })
    }

    /// Gives frames memory of their own, ahead of the guest's writing to them.
    pub(crate) fn own(&self, frames: Range<u32>) -> Result<(), KvmError> {
        self.mapping.populate(bytes_of(&frames)).asked("giving a clone memory of its own")
    }

    /// What has to be done before the machine is paused for a freeze, while it runs.
    pub(crate) fn prepare(&self) -> Result<Prepared, KvmError> {
        match &self.origin {
            Origin::Fresh(file) => {
                // What would refuse the mapping in the pause does so here, where the machine can go
                // on.
                let private = Mapping::of_file(file.as_fd(), file.len(), Sharing::Private);
                drop(private.asked("mapping guest memory")?);
                until_short(|| self.forget())?;
                Ok(Prepared::Flip(Arc::clone(file)))
            }
            Origin::Image(image) => {
                let mut copying =
                    Copying::new(&self.layout, &self.mapping, Some(Arc::clone(image)))?;
                copying.begin()?;
                until_short(|| copying.go_on())?;
                Ok(Prepared::Copying(copying))
            }
            Origin::Filled => {
                let mut copying = Copying::new(&self.layout, &self.mapping, None)?;
                copying.begin_with_all()?;
                until_short(|| copying.go_on())?;
                Ok(Prepared::Copying(copying))
            }
            Origin::Lost => Err(KvmError::Lacking("the image of this machine's last freeze")),
        }
    }

    /// Has KVM and processors forget where the pages of a shared mapping are, piece by piece: a
    /// guest that runs waits for no more than one.
    fn forget(&self) -> Result<(), KvmError> {
        let len = self.mapping.len();
        for at in (0..len).step_by(PIECE) {
            match self.mapping.forget(at..at.saturating_add(PIECE).min(len)) {
                // Huge pages, before Linux 5.18: the pause is longer.
                Err(Errno::INVAL) if !self.is_of_small_pages() => return Ok(()),
                forgotten => forgotten.asked("unmapping guest memory")?,
            }
        }
        Ok(())
    }

    fn is_of_small_pages(&self) -> bool {
        matches!(&self.origin, Origin::Fresh(file) if file.pages() == PageSize::Small)
    }

    /// While all vCPUs are stopped: has the guest go on without changing what it had.
    ///
    /// # Errors
    /// [`KvmError`]; when the machine cannot go on after it [`GuestRam::is_lost`].
    pub(crate) fn freeze(&mut self, prepared: &mut Prepared) -> Result<(), KvmError> {
        match prepared {
            Prepared::Flip(file) => {
                // The last mapping that could write to the file: snapshot bytes are snapshot only
                // without it.
                let mapping = Arc::get_mut(&mut self.mapping);
                let mapping = mapping.ok_or_else(|| {
                    KvmError::State("internal error: its memory is mapped for others".into())
                })?;
                file.seal()?;
                // Until there is an image: what the file holds is not what the guest has any more.
                self.origin = Origin::Lost;
                mapping.make_private(file.as_fd()).asked("mapping snapshot memory")
            }
            Prepared::Copying(copying) => copying.finish(),
        }
    }

    /// Whether its bytes are gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.mapping.len() == 0
    }

    /// When the guest runs again: the image.
    pub(crate) fn image(&mut self, prepared: Prepared) -> Result<Arc<SnapshotMemory>, KvmError> {
        match prepared {
            Prepared::Flip(file) => {
                let image = Arc::new(SnapshotMemory::new(self.layout.clone(), file)?);
                self.origin = Origin::Image(Arc::clone(&image));
                Ok(image)
            }
            // The machine keeps the pages of its own, and its origin.
            Prepared::Copying(copying) => Ok(Arc::new(copying.image(&self.layout)?)),
        }
    }
}
