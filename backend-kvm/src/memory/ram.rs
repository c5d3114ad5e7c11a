//! What a VM has for RAM.

use super::file::MemoryFile;
use super::{FrozenImage, PageSize, Ram, bytes, runs};
use crate::error::{Asked, KvmError};
use crate::sys::{Mapping, Sharing, Tracker, Written, install_slot, own_pages, remove_slot};
use kaleidoscope_core::addr::{FRAME_BYTES, Gpa};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout};
use kvm_ioctls::VmFd;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Bytes that are copied at once: all of a level-2 cache's share.
const PIECE: usize = 256 << 10;

/// Where the bytes come from that the VM has not written.
#[derive(Clone, Debug)]
enum Origin {
    /// It was never frozen: the mapping is shared, and the file has all that it wrote.
    Fresh(Arc<MemoryFile>),
    /// A frozen image, of the VM or of its parent: the mapping is private.
    Image(Arc<FrozenImage>),
    /// Elsewhere: a handler fills the mapping, which is private.
    Filled,
    /// An image that could not be kept: the mapping is private.
    Lost,
}

/// A VM's RAM. One contiguous mapping in frame-index order, of which KVM shows the guest a slot per region.
#[derive(Debug)]
pub(crate) struct GuestRam {
    layout: MemoryLayout,
    mapping: Arc<Mapping>,
    origin: Origin,
}

/// What a machine that was never frozen goes on with after its first freeze.
pub(crate) struct Flip {
    file: Arc<MemoryFile>,
    private: Arc<Mapping>,
}

/// The copying of what a machine wrote since its image, or of all that it has, before it is paused.
pub(crate) struct Copying {
    /// None when all of it is copied.
    image: Option<Arc<FrozenImage>>,
    tracker: Tracker,
    delta: MemoryFile,
    copied: Vec<Range<u32>>,
    buffer: Vec<u8>,
}

impl GuestRam {
    /// RAM that is all zeros.
    pub(crate) fn new(ram: Ram) -> Result<Self, KvmError> {
        let Ram { layout, pages } = ram;
        let file = Arc::new(MemoryFile::of_pages(bytes(&layout), pages)?);
        // The pool of huge pages has all of the machine's or refuses it, so that looking at its image never lacks one.
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
    pub(crate) fn of_image(image: Arc<FrozenImage>) -> Result<Self, KvmError> {
        let layout = image.layout().clone();
        let mapping = Arc::new(image.private()?);
        Ok(Self { layout, mapping, origin: Origin::Image(image) })
    }

    /// RAM that a handler fills.
    pub(crate) fn filled(layout: MemoryLayout, mapping: Arc<Mapping>) -> Self {
        Self { layout, mapping, origin: Origin::Filled }
    }

    pub(crate) fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Shows the RAM to the guest.
    pub(crate) fn install(&self, vm: &VmFd) -> Result<(), KvmError> {
        self.show(vm, &self.mapping)
    }

    fn show(&self, vm: &VmFd, mapping: &Arc<Mapping>) -> Result<(), KvmError> {
        for (slot, region) in (0u32..).zip(self.layout.regions()) {
            let start = region.first_index.as_usize() * FRAME_BYTES;
            let part = start..start + region.frames as usize * FRAME_BYTES;
            install_slot(vm, slot, region.start.gpa().0, mapping, part)
                .asked("giving a VM its memory")?;
        }
        Ok(())
    }

    fn hide(&self, vm: &VmFd) -> Result<(), KvmError> {
        for (slot, region) in (0u32..).zip(self.layout.regions()) {
            remove_slot(vm, slot, region.start.gpa().0).asked("taking a VM's memory")?;
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

    /// Gives frames memory of their own, ahead of the guest's writing to them.
    pub(crate) fn own(&self, frames: Range<u32>) -> Result<(), KvmError> {
        let range = frames.start as usize * FRAME_BYTES..frames.end as usize * FRAME_BYTES;
        self.mapping.populate(range).asked("giving a clone memory of its own")
    }

    /// What has to be done before the machine is paused for a freeze, while it runs.
    pub(crate) fn prepare(&self) -> Result<Prepared, KvmError> {
        match &self.origin {
            Origin::Fresh(file) => {
                let private = Mapping::of_file(file.as_fd(), file.len(), Sharing::Private);
                let private = Arc::new(private.asked("mapping guest memory")?);
                Ok(Prepared::Flip(Flip { file: Arc::clone(file), private }))
            }
            Origin::Image(image) => {
                let mut copying = Copying::new(self, Some(Arc::clone(image)))?;
                copying.copy(&self.mapping, Written::Ever)?;
                Ok(Prepared::Copying(copying))
            }
            Origin::Filled => {
                let mut copying = Copying::new(self, None)?;
                copying.copy_all(&self.mapping)?;
                Ok(Prepared::Copying(copying))
            }
            Origin::Lost => Err(KvmError::Lacking("the image of this machine's last freeze")),
        }
    }

    /// While all vCPUs are stopped: has the guest go on without changing what it had.
    pub(crate) fn freeze(
        &mut self,
        vm: &VmFd,
        prepared: &mut Prepared,
    ) -> Result<Dropped, KvmError> {
        match prepared {
            Prepared::Flip(flip) => {
                flip.file.seal()?;
                let moved = self.hide(vm).and_then(|()| self.show(vm, &flip.private));
                if let Err(error) = moved {
                    // Back to where it was.
                    let _ = self.hide(vm);
                    self.show(vm, &self.mapping)?;
                    return Err(error);
                }
                // Until there is an image: what the file holds is not what the guest has any more.
                self.origin = Origin::Lost;
                let shared = std::mem::replace(&mut self.mapping, Arc::clone(&flip.private));
                Ok(Dropped(Some(shared)))
            }
            Prepared::Copying(copying) => {
                copying.copy(&self.mapping, Written::Since)?;
                Ok(Dropped(None))
            }
        }
    }

    /// When the guest runs again: the image.
    pub(crate) fn image(
        &mut self,
        prepared: Prepared,
        dropped: Dropped,
    ) -> Result<Arc<FrozenImage>, KvmError> {
        match prepared {
            Prepared::Flip(flip) => {
                // The last mapping that could write to the file: frozen bytes are frozen only without it.
                if dropped.0.is_some_and(|shared| Arc::into_inner(shared).is_none()) {
                    let what = "internal error: frozen memory is still mapped for writing";
                    return Err(KvmError::State(what.into()));
                }
                let image = Arc::new(FrozenImage::new(self.layout.clone(), flip.file)?);
                self.origin = Origin::Image(Arc::clone(&image));
                Ok(image)
            }
            // The machine keeps the pages of its own, and its origin.
            Prepared::Copying(copying) => {
                let Copying { image, tracker, delta, copied, .. } = copying;
                drop(tracker);
                Ok(Arc::new(match image {
                    Some(image) => image.with(delta, runs::normal(copied))?,
                    None => FrozenImage::new(self.layout.clone(), Arc::new(delta))?,
                }))
            }
        }
    }
}

/// What [`GuestRam::prepare`] has done.
pub(crate) enum Prepared {
    Flip(Flip),
    Copying(Copying),
}

/// A mapping that the guest does not use any more. Dropping it takes time in proportion to its pages.
#[must_use]
pub(crate) struct Dropped(Option<Arc<Mapping>>);

impl Copying {
    fn new(ram: &GuestRam, image: Option<Arc<FrozenImage>>) -> Result<Self, KvmError> {
        let tracker = Tracker::new(Arc::clone(&ram.mapping));
        Ok(Self {
            image,
            tracker: tracker.asked(
                "tracking a machine's writes (Linux 6.7 or later, and the right to use userfaultfd)",
            )?,
            delta: MemoryFile::new(bytes(&ram.layout))?,
            copied: Vec::new(),
            buffer: vec![0; PIECE],
        })
    }

    /// Copies everything, from a moment on from which writes are tracked.
    fn copy_all(&mut self, mapping: &Mapping) -> Result<(), KvmError> {
        self.tracker.runs(Written::Ever).asked("tracking what a machine writes")?;
        let mut at = 0;
        let end = self.delta.len();
        while at < end {
            let piece = at..at.saturating_add(PIECE).min(end);
            let buffer = self.buffer.get_mut(..piece.len()).unwrap_or_default();
            mapping.read(at, buffer).asked("reading guest memory")?;
            for (n, page) in buffer.chunks(FRAME_BYTES).enumerate() {
                // The file has zeros already, and takes no memory for them.
                if page.iter().any(|byte| *byte != 0) {
                    self.delta.write(at + n * FRAME_BYTES, page)?;
                }
            }
            at = piece.end;
        }
        Ok(())
    }

    fn copy(&mut self, mapping: &Mapping, written: Written) -> Result<(), KvmError> {
        let found = self.tracker.runs(written).asked("looking for what a machine wrote")?;
        for run in found {
            // The rest of a last page that is huge is nobody's.
            let run = run.start..run.end.min(self.delta.len());
            let mut at = run.start;
            while at < run.end {
                let len = (run.end - at).min(PIECE);
                let piece = self.buffer.get_mut(..len).unwrap_or_default();
                mapping.read(at, piece).asked("reading guest memory")?;
                self.delta.write(at, piece)?;
                at += len;
            }
            self.copied.push(frames_of(&run));
        }
        Ok(())
    }
}

/// A range of bytes as a range of frames.
fn frames_of(bytes: &Range<usize>) -> Range<u32> {
    let frame = |offset: usize| u32::try_from(offset / FRAME_BYTES).unwrap_or(u32::MAX);
    frame(bytes.start)..frame(bytes.end)
}
