//! Memory images: files that hold a guest's RAM.
//!
//! [`MemoryImage::open`] opens a file or block device and provides it as [`GuestMemory`]. An ELF
//! dump describes which memory it holds and often has the vCPUs' registers. A raw file holds
//! only RAM; a [`LayoutFile`] or the machine's [`Preset`] gives the addresses.

pub(crate) mod elf;
mod error;
mod file;
mod holes;
mod layout_file;
mod mapping;
mod open;
mod parts;
mod preset;
mod segments;
mod signature;
mod source;
mod stamp;

use elf::Skipped;
pub use error::ImageError;
pub use layout_file::{LayoutFile, LayoutFileError};
pub use preset::Preset;
pub use segments::Segment;

use crate::addr::{FRAME_SIZE, FrameIndex, Gfn, Gpa};
use crate::memory::{
    Backing, Extent, ExtentTable, GuestMemory, MemoryError, MemoryLayout, SnapshotId,
};
use crate::registers::VcpuRegisters;
use mapping::ImageBytes;
use parts::Parts;
use segments::SegmentTable;
use source::Source;
use std::fs::File;
use std::path::Path;

/// The format of a file.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Format {
    /// Detected by the first bytes: an ELF dump, or else raw and without holes.
    #[default]
    Auto,
    /// An ELF core dump of a machine.
    Elf,
    /// RAM only.
    Raw(RawLayout),
}

/// Guest-physical addresses of the bytes of a raw file.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum RawLayout {
    /// From address 0, without holes. Refused for files of 2.75 GiB or more, because such guests
    /// have holes.
    #[default]
    Contiguous,
    /// The ranges of this layout. Parts of the file that it does not name are ignored.
    File(LayoutFile),
    /// The RAM layout of this machine for the file's size.
    Preset(Preset),
}

/// A guest's RAM in a file.
#[derive(Debug)]
pub struct MemoryImage {
    bytes: ImageBytes,
    layout: MemoryLayout,
    segments: SegmentTable,
    vcpus: Vec<VcpuRegisters>,
    vmcoreinfo: Option<Vec<u8>>,
    skipped: Vec<Skipped>,
    /// Further files that hold some of the memory.
    parts: Option<Box<Parts>>,
    extents: ExtentTable,
    id: SnapshotId,
}

impl MemoryImage {
    /// Opens an image: a file or a block device.
    ///
    /// The file must not change while the image is open. Changes are detected: after the file's
    /// size or time stamps have changed, every read fails with [`MemoryError::Io`]. Bytes are
    /// copied from the file, unless the file cannot change: a memfd that is sealed against writing
    /// and shrinking, or a file that is immutable or under fs-verity, is mapped and can be
    /// [borrowed](GuestMemory::slice). [`open_unchanging`](Self::open_unchanging) maps any file.
    ///
    /// Two kinds of changes are not detected: writes through a mapping on tmpfs and hugetlbfs, and
    /// writes to a disk that bypass the block device's file. Use a copy or snapshot of such memory.
    ///
    /// Waits up to 20 ms if the file was written to recently, so that the next write changes its
    /// time stamps.
    ///
    /// # Errors
    /// [`ImageError`] if the file cannot be read, is not a file or block device, is not of this
    /// format, or contradicts its layout.
    pub fn open(path: impl AsRef<Path>, format: &Format) -> Result<Self, ImageError> {
        let path = path.as_ref();
        Self::from_file(open::open(path)?, path, format)?.with_parts(format)
    }

    /// As [`open`](Self::open), for an open file or descriptor such as a memfd
    /// (`File::from(OwnedFd)`). `name` is used in errors. Further
    /// files that a layout names are not opened, and their memory is not RAM.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_file(
        file: File,
        name: impl AsRef<Path>,
        format: &Format,
    ) -> Result<Self, ImageError> {
        let name = name.as_ref();
        let failed = |source| ImageError::Io { path: name.to_owned(), source };
        open::refuse_special(name, file.metadata().map_err(failed)?.file_type())?;
        Self::new(ImageBytes::open(file, name.to_owned()).map_err(failed)?, format)
    }

    /// An image in memory, for tests and fuzzing. Further files that a layout names are not opened,
    /// and their memory is not RAM.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: Vec<u8>, format: &Format) -> Result<Self, ImageError> {
        Self::new(ImageBytes::Owned(bytes), format)
    }

    fn new(bytes: ImageBytes, format: &Format) -> Result<Self, ImageError> {
        let len = bytes.len();
        if len == 0 {
            return Err(ImageError::Empty);
        }
        let start = bytes.start(signature::SIGNATURE_BYTES)?;
        let raw = match format {
            Format::Elf => None,
            Format::Auto if elf::is_elf(&start) => None,
            Format::Auto => match signature::unsupported(&start) {
                Some(error) => return Err(error),
                None => Some(raw_segments(len, &RawLayout::Contiguous)?),
            },
            Format::Raw(layout) => Some(raw_segments(len, layout)?),
        };
        drop(start);
        let Some(raw) = raw else { return Self::elf(bytes) };
        let ram: Vec<(Gpa, u64)> = raw.iter().map(|s| (s.gpa, s.bytes)).collect();
        let layout = MemoryLayout::new(&ram)?;
        let segments = SegmentTable::from_sorted(raw);
        let (vcpus, skipped) = (Vec::new(), Vec::new());
        let extents = holes::table(&layout, &segments, &bytes.stored_parts());
        let (vmcoreinfo, parts) = (None, None);
        let id = SnapshotId::unique();
        Ok(Self { bytes, layout, segments, vcpus, vmcoreinfo, skipped, parts, extents, id })
    }

    fn elf(bytes: ImageBytes) -> Result<Self, ImageError> {
        let core = elf::parse_source(&bytes)?;
        let elf::ElfCore { segments, ram, vcpus, vmcoreinfo, skipped } = core;
        let layout = MemoryLayout::new(&ram)?;
        let extents = holes::table(&layout, &segments, &bytes.stored_parts());
        let (parts, id) = (None, SnapshotId::unique());
        Ok(Self { bytes, layout, segments, vcpus, vmcoreinfo, skipped, parts, extents, id })
    }

    /// Fails if one of the image's files has changed since it was opened. Reads check this
    /// themselves; this is for results that are known without reading.
    ///
    /// # Errors
    /// [`ImageError::Changed`], from the first change on.
    pub fn check_unchanged(&self) -> Result<(), ImageError> {
        self.bytes.check().map_err(ImageError::Changed)?;
        self.parts.as_ref().map_or(Ok(()), |parts| parts.check_unchanged())
    }

    /// The vCPUs' registers, if the file has them.
    #[must_use]
    pub fn vcpus(&self) -> &[VcpuRegisters] {
        &self.vcpus
    }

    /// The guest kernel's VMCOREINFO text, if the file has it as a note.
    #[must_use]
    pub fn vmcoreinfo(&self) -> Option<&[u8]> {
        self.vmcoreinfo.as_deref()
    }

    /// Skipped parts of the file that are not needed to read the memory, for display.
    #[must_use]
    pub fn skipped(&self) -> Vec<String> {
        self.skipped.iter().map(Skipped::to_string).collect()
    }

    /// Whether the image holds all bytes of a frame. Frames past the layout are not held.
    #[must_use]
    pub fn holds(&self, frame: FrameIndex) -> bool {
        let gpa = self.layout.gfn_of(frame).map(Gfn::gpa);
        let in_part = |gpa| self.parts.as_ref().is_some_and(|parts| parts.holds(gpa));
        gpa.is_some_and(|gpa| self.segments.holds_frame(gpa) || in_part(gpa))
    }

    /// Number of RAM frames that the image does not hold; reading them fails with
    /// [`MemoryError::Missing`].
    #[must_use]
    pub fn missing_frames(&self) -> u32 {
        let held = u32::try_from(self.segments.held_frames()).unwrap_or(u32::MAX);
        let in_parts = self.parts.as_ref().map_or(0, |parts| parts.held_frames());
        self.layout.frames().saturating_sub(held).saturating_sub(in_parts)
    }

    /// Byte offset of a frame in the file that was opened; `None` if the file does not hold the
    /// frame in one piece.
    #[must_use]
    pub fn file_offset(&self, frame: FrameIndex) -> Option<u64> {
        self.segments.frame_offset(self.layout.gfn_of(frame)?.gpa())
    }

    /// The ranges that the opened file holds, by ascending address.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        self.segments.as_slice()
    }

    /// As [`GuestMemory::read`], from the file that was opened.
    #[inline]
    fn read_own(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        match self.segments.locate(gpa, buf.len()) {
            Some(range) if range.len() == buf.len() => {
                let read = self.bytes.read(range.start, buf);
                read.map_err(|source| MemoryError::Io { gpa, source })
            }
            _ => self.read_pieces(gpa, buf),
        }
    }

    /// As [`GuestMemory::slice`], from the file that was opened.
    #[inline]
    fn slice_own(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        let range = self.segments.locate(gpa, len)?;
        if range.len() < len {
            return None;
        }
        self.bytes.slice(range)
    }

    /// Copies a range that no single segment holds. The error tells memory that is not RAM from
    /// missing memory.
    #[cold]
    fn read_pieces(&self, mut gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let (_, left) = self.layout.span_at(gpa).ok_or(MemoryError::NotRam { gpa, len })?;
        if len as u64 > left {
            return Err(MemoryError::NotRam { gpa, len });
        }
        let mut rest = buf;
        while !rest.is_empty() {
            let piece = self.segments.locate(gpa, rest.len()).filter(|piece| !piece.is_empty());
            let Some(piece) = piece else {
                return Err(MemoryError::Missing { gpa, len: rest.len() });
            };
            let (now, later) = rest.split_at_mut(piece.len());
            self.bytes.read(piece.start, now).map_err(|source| MemoryError::Io { gpa, source })?;
            gpa = Gpa(gpa.0.saturating_add(piece.len() as u64));
            rest = later;
        }
        Ok(())
    }
}

impl GuestMemory for MemoryImage {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    #[inline]
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        match &self.parts {
            None => self.read_own(gpa, buf),
            Some(parts) => parts.read(self, gpa, buf),
        }
    }

    #[inline]
    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        let own = self.slice_own(gpa, len);
        own.or_else(|| self.parts.as_ref()?.slice(gpa, len))
    }

    #[inline]
    fn extent(&self, frame: FrameIndex) -> Extent {
        let extent = self.extents.extent(frame);
        match extent.backing {
            // In a file that changed, a hole may have been filled. As data, the frame is read, and
            // the read reports the change.
            Backing::Hole if self.check_unchanged().is_err() => {
                Extent { backing: Backing::Data, ..extent }
            }
            Backing::Hole | Backing::Missing | Backing::Data => extent,
        }
    }

    fn release(&self, gpa: Gpa, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if let Some(range) = self.segments.locate(gpa, bytes) {
            self.bytes.release(range);
        }
    }

    /// The file must not change while it is open, and reads report a change.
    fn snapshot_id(&self) -> Option<SnapshotId> {
        Some(self.id)
    }
}

/// The segments of a raw file of `bytes` bytes.
fn raw_segments(bytes: u64, layout: &RawLayout) -> Result<Vec<Segment>, ImageError> {
    let whole_frames = match bytes % FRAME_SIZE {
        0 => Ok(()),
        over => Err(ImageError::NotFrames { bytes, over }),
    };
    match layout {
        RawLayout::Contiguous => {
            whole_frames?;
            if bytes >= preset::NEVER_SPLIT_BELOW {
                return Err(ImageError::LayoutNeeded { bytes });
            }
            Ok(vec![Segment { gpa: Gpa(0), bytes, file_offset: 0 }])
        }
        RawLayout::File(file) => {
            file.check_against(bytes)?;
            Ok(file.segments().collect())
        }
        RawLayout::Preset(preset) => {
            whole_frames?;
            Ok(preset.segments(bytes))
        }
    }
}

#[cfg(test)]
mod tests;
