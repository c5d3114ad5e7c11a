//! RAM of a VM.

use super::file::{MemoryFile, bytes_of, frames_of};
use super::freeze::{PageCopier, Prepared, until_short};
use super::{PageSize, Ram, SnapshotMemory, bytes, runs};
use crate::error::{Asked, Error, ErrorKind};
use crate::sys::{Mapping, Pages, Sharing, Slot, VmHandle, own_pages};
use kaleidoscope_core::addr::{FRAME_BYTES, Gpa};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Bytes that are zapped at once, while the guest has to wait. On 64 MiB, pieces of 1 to 32 MiB
/// take the same time in total.
const PIECE: usize = 4 << 20;

/// Source of the pages that the VM has not written.
#[derive(Clone, Debug)]
enum Origin {
    /// The machine was never snapshotted: the mapping is shared, and the file holds all writes.
    Fresh(Arc<MemoryFile>),
    /// A snapshot image of the VM or of its parent; the mapping is private.
    Image(Arc<SnapshotMemory>),
    /// A userfaultfd handler fills the mapping, which is private.
    Filled,
    /// A freeze failed halfway: the image or the mapping is lost.
    Lost,
}

/// A VM's RAM: one contiguous mapping in frame-index order, with a KVM memory slot per region.
#[derive(Debug)]
pub(crate) struct GuestRam {
    layout: MemoryLayout,
    mapping: Arc<Mapping>,
    origin: Origin,
}

/// The kernel's page map of a RAM's frames.
#[derive(Debug)]
pub(crate) struct FramePages<'a> {
    pages: Pages<'a>,
    frames: u32,
}

impl FramePages<'_> {
    /// Whether a frame has private memory; false for frames past the end.
    pub(crate) fn is_own(&self, frame: u32) -> Result<bool, Error> {
        let offset = frame as usize * FRAME_BYTES;
        let is_own = || self.pages.is_own(offset).asked("reading a page map");
        if frame < self.frames { is_own() } else { Ok(false) }
    }
}

impl GuestRam {
    /// Zeroed RAM.
    pub(crate) fn new(ram: Ram) -> Result<Self, Error> {
        let Ram { layout, pages } = ram;
        let file = Arc::new(MemoryFile::of_pages(bytes(&layout), pages)?);
        // A shared mapping of huge pages reserves all of them now, or fails. Reading the machine's
        // image therefore never lacks one.
        let mapping = Mapping::of_file(file.as_fd(), file.len(), Sharing::Shared);
        let mapping = mapping.asked(match pages {
            PageSize::Small => "mapping guest memory",
            PageSize::Huge => {
                "taking guest memory from the huge pages that are free (vm.nr_hugepages)"
            }
        })?;
        Ok(Self { layout, mapping: Arc::new(mapping), origin: Origin::Fresh(file) })
    }

    /// RAM with the contents of an image; writes are private (copy-on-write).
    pub(crate) fn of_image(image: Arc<SnapshotMemory>) -> Result<Self, Error> {
        let layout = image.layout().clone();
        let mapping = Arc::new(image.private()?);
        Ok(Self { layout, mapping, origin: Origin::Image(image) })
    }

    /// RAM that a userfaultfd handler fills.
    pub(crate) fn filled(layout: MemoryLayout, mapping: Arc<Mapping>) -> Self {
        Self { layout, mapping, origin: Origin::Filled }
    }

    /// Makes RAM that a handler filled read unwritten pages from an image from now on.
    pub(crate) fn set_image(&mut self, image: Arc<SnapshotMemory>) {
        self.origin = Origin::Image(image);
    }

    pub(crate) fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Installs the KVM memory slots.
    pub(crate) fn install(&self, vm: &VmHandle) -> Result<(), Error> {
        for (slot, region) in (0u32..).zip(self.layout.regions()) {
            let start = region.first_index.as_usize() * FRAME_BYTES;
            let part = start..start + region.frames as usize * FRAME_BYTES;
            let part = Slot::of(&self.mapping, part).asked("giving a VM its memory")?;
            let installed = vm.install_slot(slot, region.start.gpa().0, part);
            installed.asked("giving a VM its memory")?;
        }
        Ok(())
    }

    /// Offset in the mapping of a guest-physical range.
    fn offset(&self, gpa: Gpa, len: usize) -> Result<usize, Error> {
        let range = self.layout.bytes_at(gpa, len);
        range.map(|range| range.start).ok_or_else(|| {
            let what = format!("guest-physical range {:#x}..+{len:#x} is not RAM", gpa.0);
            Error::new(ErrorKind::OutOfRange, what)
        })
    }

    /// Copies bytes of the guest.
    pub(crate) fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        let offset = self.offset(gpa, buf.len())?;
        self.mapping.read(offset, buf).asked("reading guest memory")
    }

    /// Overwrites bytes of the guest.
    pub(crate) fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), Error> {
        let offset = self.offset(gpa, bytes.len())?;
        self.mapping.write(offset, bytes).asked("writing guest memory")
    }

    /// Bytes of memory private to this RAM, as the kernel counts them.
    pub(crate) fn own_bytes(&self) -> Result<u64, Error> {
        match &self.origin {
            Origin::Fresh(file) => file.taken(),
            Origin::Image(_) | Origin::Filled | Origin::Lost => {
                let pages = own_pages(&self.mapping);
                let pages = pages.supported("counting a clone's memory (Linux 6.7 or later)")?;
                Ok(pages.iter().map(|run| run.len() as u64).sum())
            }
        }
    }

    /// Whether pages are shared with an image until they are written.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.origin, Origin::Image(_))
    }

    /// Frames that became private since the image, in order.
    pub(crate) fn written(&self) -> Result<Vec<Range<u32>>, Error> {
        if !self.is_shared() {
            return Ok(Vec::new());
        }
        let pages = own_pages(&self.mapping);
        let pages = pages.supported("looking for what a machine wrote (Linux 6.7 or later)")?;
        Ok(pages.iter().map(frames_of).collect())
    }

    /// The [written](Self::written) frames that the image shows from the content store.
    pub(crate) fn diverged(&self) -> Result<Vec<Range<u32>>, Error> {
        let written = self.written()?;
        let Origin::Image(image) = &self.origin else { return Ok(Vec::new()) };
        Ok(runs::without(&written, &runs::without(&written, &image.shared())))
    }

    /// The kernel's page map, for queries by frame.
    pub(crate) fn pages(&self) -> Result<FramePages<'_>, Error> {
        let pages = Pages::of(&self.mapping).asked("opening a page map")?;
        Ok(FramePages { pages, frames: self.layout.frames() })
    }

    /// Gives frames private memory before the guest writes to them.
    pub(crate) fn own(&self, frames: Range<u32>) -> Result<(), Error> {
        self.mapping.populate(bytes_of(&frames)).asked("giving a clone memory of its own")
    }

    /// Does the part of a freeze that is possible while the machine runs.
    pub(crate) fn prepare(&self) -> Result<Prepared, Error> {
        match &self.origin {
            Origin::Fresh(file) => {
                // If the kernel refuses the private mapping, it does so here, where the machine can
                // still continue.
                let private = Mapping::of_file(file.as_fd(), file.len(), Sharing::Private);
                drop(private.asked("mapping guest memory")?);
                until_short(|| self.zap())?;
                Ok(Prepared::MakePrivate(Arc::clone(file)))
            }
            Origin::Image(image) => {
                let mut copier =
                    PageCopier::new(&self.layout, &self.mapping, Some(Arc::clone(image)))?;
                copier.begin()?;
                until_short(|| copier.copy_written())?;
                Ok(Prepared::Copy(copier))
            }
            Origin::Filled => {
                let mut copier = PageCopier::new(&self.layout, &self.mapping, None)?;
                copier.begin_full()?;
                until_short(|| copier.copy_written())?;
                Ok(Prepared::Copy(copier))
            }
            Origin::Lost => {
                Err(Error::state("the last freeze of this machine failed halfway: it has no image"))
            }
        }
    }

    /// Removes a shared mapping from the page tables and KVM's, piece by piece. A running guest
    /// waits for at most one piece.
    fn zap(&self) -> Result<(), Error> {
        let len = self.mapping.len();
        for at in (0..len).step_by(PIECE) {
            match self.mapping.forget(at..at.saturating_add(PIECE).min(len)) {
                // Huge pages before Linux 5.18 do not support this: the pause is longer.
                Err(Errno::INVAL) if !self.is_of_small_pages() => return Ok(()),
                forgotten => forgotten.asked("unmapping guest memory")?,
            }
        }
        Ok(())
    }

    fn is_of_small_pages(&self) -> bool {
        matches!(&self.origin, Origin::Fresh(file) if file.pages() == PageSize::Small)
    }

    /// Freezes the RAM while all vCPUs are stopped: the guest's later writes do not change the
    /// image.
    ///
    /// # Errors
    /// [`Error`]; the machine cannot continue if [`GuestRam::is_lost`] afterwards.
    pub(crate) fn freeze(&mut self, prepared: &mut Prepared) -> Result<(), Error> {
        match prepared {
            Prepared::MakePrivate(file) => {
                // This must be the last mapping that can write to the file: only then is the image
                // immutable.
                let mapping = Arc::get_mut(&mut self.mapping);
                let mapping = mapping.ok_or_else(|| {
                    Error::state("internal error: the guest's memory has other users")
                })?;
                file.seal()?;
                // Until the image exists: the file no longer holds what the guest has.
                self.origin = Origin::Lost;
                mapping.make_private(file.as_fd()).asked("mapping snapshot memory")
            }
            Prepared::Copy(copier) => copier.finish(),
        }
    }

    /// Whether the mapping was lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.mapping.len() == 0
    }

    /// Builds the image, after the guest was resumed.
    pub(crate) fn image(&mut self, prepared: Prepared) -> Result<Arc<SnapshotMemory>, Error> {
        match prepared {
            Prepared::MakePrivate(file) => {
                let image = Arc::new(SnapshotMemory::new(self.layout.clone(), file)?);
                self.origin = Origin::Image(Arc::clone(&image));
                Ok(image)
            }
            // The machine keeps its private pages and its origin.
            Prepared::Copy(copier) => Ok(Arc::new(copier.image(&self.layout)?)),
        }
    }
}
