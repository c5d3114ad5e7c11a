//! The interface for reading guest memory.

use super::{Backing, Extent, MemoryLayout, Page, SnapshotId, ZERO_PAGE};
use crate::addr::{FRAME_BYTES, FrameIndex, Gfn, Gpa};
use thiserror::Error;

/// Why guest memory could not be read.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// Part of the range is not RAM.
    #[error("guest-physical range {gpa}..+{len:#x} is not RAM")]
    NotRam {
        /// First address of the range.
        gpa: Gpa,
        /// Length of the range in bytes.
        len: usize,
    },
    /// The range is RAM, but the image does not hold its bytes (for example, in a filtered dump).
    #[error("the image does not hold guest-physical range {gpa}..+{len:#x}")]
    Missing {
        /// First address of the range.
        gpa: Gpa,
        /// Length of the range in bytes.
        len: usize,
    },
    /// The system could not read the bytes.
    #[error("reading guest-physical address {gpa}: {source}")]
    Io {
        /// First address that could not be read.
        gpa: Gpa,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// A guest's RAM at one instant. Object-safe; backends implement it for snapshots.
///
/// Two reads of an address must return the same bytes. Implementations read a snapshot, never
/// memory that a vCPU may write.
pub trait GuestMemory: Send + Sync {
    /// The frames that are RAM.
    fn layout(&self) -> &MemoryLayout;

    /// Fills `buf` with the bytes at `gpa`. The range must lie in one RAM region.
    ///
    /// # Errors
    /// [`MemoryError`] if any byte of the range is not RAM or cannot be read; the contents of `buf`
    /// are then unspecified.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Reads several ranges. A backend with a high cost per call can override this.
    ///
    /// # Errors
    /// The first error; it is then unspecified which buffers were filled.
    fn read_batch(&self, requests: &mut [(Gpa, &mut [u8])]) -> Result<(), MemoryError> {
        requests.iter_mut().try_for_each(|(gpa, buf)| self.read(*gpa, buf))
    }

    /// Borrows the bytes, if the implementation has them mapped contiguously; `None` means to use
    /// [`read`](Self::read).
    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        let _ = (gpa, len);
        None
    }

    /// The backing of `frame`, known without reading it, and of the following frames with the same
    /// backing.
    ///
    /// By default every frame is [`Backing::Data`]. An implementation that wraps another one
    /// without changing bytes should forward this method. [`Backing::Hole`] is a guarantee that
    /// every byte reads as zero for as long as this memory exists. Past the end of RAM, the result
    /// is one frame of data.
    fn extent(&self, frame: FrameIndex) -> Extent {
        let end = self.layout().frames().max(frame.0.saturating_add(1));
        Extent { frames: frame.0..end, backing: Backing::Data }
    }

    /// Hints that the caller will not read these bytes again soon, so that the implementation may
    /// drop them from memory. Later reads still work; the default does nothing.
    fn release(&self, gpa: Gpa, bytes: u64) {
        let _ = (gpa, bytes);
    }

    /// Identifies the bytes of this memory; `None` if the implementation has no id, which is the
    /// default. An implementation that can be changed must have another id after each change. One
    /// that wraps another memory without changing bytes should forward this method.
    ///
    /// Engines use it to check that a color map is of the snapshot that pages come from: without an
    /// id, [`FreeFrames::Auto`](../clone/enum.FreeFrames.html#variant.Auto) fetches free frames.
    fn snapshot_id(&self) -> Option<SnapshotId> {
        None
    }
}

impl<M: GuestMemory + ?Sized> GuestMemory for &M {
    fn layout(&self) -> &MemoryLayout {
        (**self).layout()
    }
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        (**self).read(gpa, buf)
    }
    fn read_batch(&self, requests: &mut [(Gpa, &mut [u8])]) -> Result<(), MemoryError> {
        (**self).read_batch(requests)
    }
    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        (**self).slice(gpa, len)
    }
    fn extent(&self, frame: FrameIndex) -> Extent {
        (**self).extent(frame)
    }
    fn release(&self, gpa: Gpa, bytes: u64) {
        (**self).release(gpa, bytes);
    }
    fn snapshot_id(&self) -> Option<SnapshotId> {
        (**self).snapshot_id()
    }
}

/// A frame's page: borrowed if possible, or else read into `buffer`; `None` if the image lacks it.
/// A hole is not read.
pub(crate) fn read_page<'a>(
    memory: &'a dyn GuestMemory,
    gfn: Gfn,
    buffer: &'a mut Page,
) -> Result<Option<&'a Page>, MemoryError> {
    let backing = memory.layout().index_of(gfn).map(|frame| memory.extent(frame).backing);
    match backing {
        Some(Backing::Hole) => return Ok(Some(&ZERO_PAGE)),
        Some(Backing::Missing) => return Ok(None),
        Some(Backing::Data) | None => {}
    }
    let mapped = memory.slice(gfn.gpa(), FRAME_BYTES);
    if let Some(page) = mapped.and_then(|bytes| bytes.try_into().ok()) {
        return Ok(Some(page));
    }
    match memory.read(gfn.gpa(), buffer) {
        Ok(()) => Ok(Some(buffer)),
        Err(MemoryError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Guest memory held in a vector, in frame-index order: for tests, fuzzing and small guests.
#[derive(Clone, Debug)]
pub struct VecMemory {
    layout: MemoryLayout,
    bytes: Vec<u8>,
    id: SnapshotId,
}

impl VecMemory {
    /// All-zero memory of the given layout.
    #[must_use]
    pub fn zeroed(layout: MemoryLayout) -> Self {
        let bytes = vec![0; layout.frames() as usize * FRAME_BYTES];
        Self { layout, bytes, id: SnapshotId::unique() }
    }

    /// Memory with these bytes. If `bytes` is too short, the rest is zero; surplus bytes are
    /// dropped.
    #[must_use]
    pub fn from_bytes(layout: MemoryLayout, mut bytes: Vec<u8>) -> Self {
        bytes.resize(layout.frames() as usize * FRAME_BYTES, 0);
        Self { layout, bytes, id: SnapshotId::unique() }
    }

    /// All bytes, in frame-index order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All bytes, in frame-index order, mutable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.id = SnapshotId::unique();
        &mut self.bytes
    }

    /// Overwrites the bytes at `gpa`.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] if the range does not lie in one RAM region.
    pub fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        self.id = SnapshotId::unique();
        let range = self.layout.bytes_at(gpa, data.len());
        let target = range.and_then(|r| self.bytes.get_mut(r));
        target.ok_or(MemoryError::NotRam { gpa, len: data.len() })?.copy_from_slice(data);
        Ok(())
    }
}

impl GuestMemory for VecMemory {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let bytes = self.slice(gpa, buf.len());
        buf.copy_from_slice(bytes.ok_or(MemoryError::NotRam { gpa, len: buf.len() })?);
        Ok(())
    }

    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        self.layout.bytes_at(gpa, len).and_then(|range| self.bytes.get(range))
    }

    fn snapshot_id(&self) -> Option<SnapshotId> {
        Some(self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stay_inside_a_region() {
        let layout = MemoryLayout::new(&[(Gpa(0), 0x1000), (Gpa(0x4000), 0x1000)]).unwrap();
        let mut memory = VecMemory::zeroed(layout);
        memory.write(Gpa(0x4ffe), &[7, 9]).unwrap();
        let mut buf = [0; 2];
        memory.read(Gpa(0x4ffe), &mut buf).unwrap();
        assert_eq!(buf, [7, 9]);
        assert!(matches!(memory.read(Gpa(0x4fff), &mut buf), Err(MemoryError::NotRam { .. })));
        assert!(matches!(memory.read(Gpa(0xfff), &mut buf), Err(MemoryError::NotRam { .. })));
        assert!(memory.read(Gpa(u64::MAX), &mut buf).is_err());
        assert!(memory.slice(Gpa(0x4000), 0x1001).is_none());
        assert_eq!(memory.bytes()[0x1fff], 9);
    }
}
