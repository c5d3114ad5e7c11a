//! Snapshot images: a guest's RAM at one instant.

use super::file::{MemoryFile, bytes_of};
use super::store::{MAX_RUNS, Pins};
use super::{ContentStore, PageSize, bytes, runs};
use crate::error::{Asked, Error, ErrorKind};
use crate::sys::{Immutability, Mapping, Overlay, Sealed, Sharing};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex, Gpa};
use kaleidoscope_core::fingerprint::Fingerprints;
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout, SnapshotId, is_zero};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Maximum number of mappings that make up one clone's memory, including those of store pages.
const MAX_MAPPINGS: usize = 4 * MAX_RUNS;

/// A guest's RAM at the instant of a freeze, in sealed files whose bytes cannot change.
///
/// Pages that it [shares](Self::sharing) are in the content store's file, which is not sealed and
/// may be open in other processes. These pages are therefore copied out, and no reference to them
/// is handed out.
///
/// The first image of a machine is one file. A later image consists of that file and further files
/// (layers) over it, with the pages written since. Pages that a layer does not hold take no memory.
/// Layers over the first have 4 KiB pages even if the first has huge pages: a clone is likely to
/// write the pages that its parent wrote, and then copies no more than it writes.
#[derive(Debug)]
pub struct SnapshotMemory {
    layout: MemoryLayout,
    /// The mapping of the image. Its bytes are undefined for frames that the content store holds.
    sealed: Sealed,
    /// From lowest to highest, each with the frames that it provides; the lowest provides all.
    layers: Vec<Layer>,
    /// Frames that the content store provides, sorted.
    stored: Vec<(Range<u32>, Arc<Pins>)>,
    id: SnapshotId,
}

/// A range of an image's bytes with one backing.
#[derive(Clone, Debug)]
struct Piece<'a> {
    range: Range<usize>,
    /// The store's pages that back the range, or `None` for the image's own files.
    store: Option<&'a Pins>,
}

#[derive(Clone, Debug)]
struct Layer {
    bytes: Backing,
    runs: Vec<Range<u32>>,
}

/// Where a layer's bytes are.
#[derive(Clone, Debug)]
enum Backing {
    /// Its own file, in frame-index order.
    File(Arc<MemoryFile>),
    /// In the host's content store.
    Store(Arc<Pins>),
}

/// Result of sharing an image's pages through the content store, in frames of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shared {
    /// Frames mapped from the store.
    pub shared: u32,
    /// Non-zero frames kept in the image's own memory.
    pub own: u32,
    /// Zero frames, which take no memory.
    pub zero: u32,
    /// Runs of consecutive store pages. Each run is one mapping in every clone.
    pub runs: u32,
}

impl SnapshotMemory {
    /// An image of one file, which must not be written to any more.
    pub(crate) fn new(layout: MemoryLayout, file: Arc<MemoryFile>) -> Result<Self, Error> {
        let all = 0..layout.frames();
        Self::of_layers(layout, vec![Layer { bytes: Backing::File(file), runs: vec![all] }])
    }

    /// An image of one file, which must not be written to any more, with some pages from the
    /// content store over it.
    pub(crate) fn staged(
        layout: MemoryLayout,
        file: Arc<MemoryFile>,
        pins: Option<Arc<Pins>>,
    ) -> Result<Self, Error> {
        let all = 0..layout.frames();
        let mut layers = vec![Layer { bytes: Backing::File(file), runs: vec![all] }];
        if let Some(pins) = pins {
            let runs = pins.runs();
            layers.push(Layer { bytes: Backing::Store(pins), runs });
        }
        Self::of_layers(layout, layers)
    }

    /// A copy of this image that shares pages with other images through the content store. Frames
    /// that have a fingerprint are put into the store and mapped from it; the others are copied.
    /// The memory of this image is freed when the image and its clones are dropped.
    ///
    /// Bytes are compared before a page is shared. Frames are mapped in runs of consecutive store
    /// pages, longest first, up to the limit on mappings. A store that is filled in frame order
    /// gives long runs.
    ///
    /// # Errors
    /// [`Error`] when the system refuses a request, or the store fails.
    pub fn sharing(
        &self,
        store: &Arc<ContentStore>,
        fingerprints: &Fingerprints,
    ) -> Result<(Self, Shared), Error> {
        let frames = 0..self.layout.frames();
        let known = frames.clone().filter_map(|n| Some((n, fingerprints.get(FrameIndex(n))?)));
        let pins = Pins::put(store, known, |n, page| self.copy(n as usize * FRAME_BYTES, page))?;
        let runs = pins.runs();
        let mut shared =
            Shared { runs: u32::try_from(runs.len()).unwrap_or(0), ..Shared::default() };
        let file = MemoryFile::new(bytes(&self.layout))?;
        let mut page = [0; FRAME_BYTES];
        for n in frames {
            self.copy(n as usize * FRAME_BYTES, &mut page)?;
            if is_zero(&page) {
                shared.zero += 1;
            } else if pins.has(n) {
                shared.shared += 1;
            } else {
                shared.own += 1;
                file.write(n as usize * FRAME_BYTES, &page)?;
            }
        }
        let all = 0..self.layout.frames();
        let layers = vec![
            Layer { bytes: Backing::File(Arc::new(file)), runs: vec![all] },
            Layer { bytes: Backing::Store(Arc::new(pins)), runs },
        ];
        Ok((Self::of_layers(self.layout.clone(), layers)?, shared))
    }

    /// This image with other bytes in the frames of `changed` (sorted and joined): those of `file`,
    /// which must not be written to any more.
    ///
    /// Bytes of frames between them may be copied to the file, to get fewer runs.
    pub(crate) fn with(&self, file: MemoryFile, changed: Vec<Range<u32>>) -> Result<Self, Error> {
        let upper = self.layers.iter().skip(1).map(|layer| layer.runs.len()).sum::<usize>();
        let all = runs::fewer(
            self.whole_pages(&changed),
            MAX_MAPPINGS.saturating_sub(2 * upper).max(1) / 2,
        );
        for gap in runs::without(&all, &changed) {
            let range = bytes_of(&gap);
            self.copy_to(&file, range.start..range.end.min(self.sealed.bytes().len()))?;
        }
        let mut layers: Vec<Layer> = self.layers.clone();
        // A frame is read from the highest layer that has it, so the lower ones need not map it.
        for layer in layers.iter_mut().skip(1) {
            layer.runs = runs::without(&layer.runs, &all);
        }
        let mut at = 0;
        layers.retain(|layer| {
            at += 1;
            at == 1 || !layer.runs.is_empty()
        });
        layers.push(Layer { bytes: Backing::File(Arc::new(file)), runs: all });
        Self::of_layers(self.layout.clone(), layers)
    }

    /// Extends ranges (normal) to whole pages of the lowest layer, which can be mapped over.
    fn whole_pages(&self, changed: &[Range<u32>]) -> Vec<Range<u32>> {
        let pages = match self.layers.first().map(|layer| &layer.bytes) {
            Some(Backing::File(file)) => file.pages(),
            Some(Backing::Store(_)) | None => PageSize::Small,
        };
        runs::normal(changed.iter().map(|run| pages.whole(run)).collect())
    }

    fn of_layers(layout: MemoryLayout, layers: Vec<Layer>) -> Result<Self, Error> {
        for layer in &layers {
            if let Backing::File(file) = &layer.bytes {
                file.seal()?;
            }
        }
        let (base, mut over) = files(&layers)?;
        over.retain(|part| matches!(part.stands, Immutability::Sealed));
        let sealed =
            Sealed::of_files(base.as_fd(), base.len(), &over).asked("mapping snapshot memory")?;
        let in_store = layers.iter().filter_map(|layer| match &layer.bytes {
            Backing::File(_) => None,
            Backing::Store(pins) => {
                Some(layer.runs.iter().map(|run| (run.clone(), Arc::clone(pins))))
            }
        });
        let mut stored: Vec<_> = in_store.flatten().collect();
        stored.sort_unstable_by_key(|(run, _)| run.start);
        Ok(Self { layout, layers, sealed, stored, id: SnapshotId::unique() })
    }

    /// Splits a range into pieces with one backing each.
    fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = Piece<'_>> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let next = self.stored.partition_point(|(run, _)| bytes_of(run).end <= at);
            let next = self.stored.get(next).map(|(run, pins)| (bytes_of(run), &**pins));
            let (end, store) = match next {
                Some((run, pins)) if run.start <= at => (run.end, Some(pins)),
                Some((run, _)) => (run.start, None),
                None => (range.end, None),
            };
            let piece = at..end.min(range.end);
            at = piece.end;
            Some(Piece { range: piece, store })
        })
    }

    /// Copies bytes, from an offset in frame-index order.
    fn copy(&self, offset: usize, buf: &mut [u8]) -> Result<(), Error> {
        let end = offset.checked_add(buf.len()).filter(|end| *end <= self.sealed.bytes().len());
        let end =
            end.ok_or_else(|| Error::new(ErrorKind::OutOfRange, "past the end of an image"))?;
        for Piece { range, store } in self.pieces(offset..end) {
            let Some(buf) = buf.get_mut(range.start - offset..range.end - offset) else { continue };
            match store {
                Some(pins) => pins.read(range.start, buf)?,
                None => buf.copy_from_slice(self.sealed.bytes().get(range).unwrap_or_default()),
            }
        }
        Ok(())
    }

    /// Copies a range of bytes to the same offset in a file.
    fn copy_to(&self, file: &MemoryFile, range: Range<usize>) -> Result<(), Error> {
        let mut page = [0; FRAME_BYTES];
        for Piece { range, store } in self.pieces(range) {
            let Some(pins) = store else {
                let bytes = self.sealed.bytes().get(range.clone()).unwrap_or_default();
                file.write(range.start, bytes)?;
                continue;
            };
            // Both runs and requested ranges consist of whole frames.
            for at in range.step_by(FRAME_BYTES) {
                pins.read(at, &mut page)?;
                file.write(at, &page)?;
            }
        }
        Ok(())
    }

    /// Frames that the content store provides: sorted ranges of frame indexes, end exclusive.
    #[must_use]
    pub fn shared(&self) -> Vec<Range<u32>> {
        runs::normal(self.stored.iter().map(|(run, _)| run.clone()).collect())
    }

    /// All bytes, in frame-index order. `None` for an image that [shares](Self::sharing) pages,
    /// since other processes may write to the content store's file; such an image can be
    /// [read](GuestMemory::read).
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        // The mapping may end in a partial huge page, whose rest is not guest memory.
        self.sealed.bytes().get(..bytes(&self.layout)).filter(|_| self.stored.is_empty())
    }

    /// Bytes of memory that the image takes, as the kernel counts them. Includes memory shared with
    /// earlier images of the machine, excludes the content store.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when the kernel does not report it.
    pub fn taken(&self) -> Result<u64, Error> {
        let taken = self.layers.iter().map(|layer| match &layer.bytes {
            Backing::File(file) => file.taken(),
            Backing::Store(_) => Ok(0),
        });
        taken.sum()
    }

    /// Number of layers that the image consists of.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// A private (copy-on-write) mapping of the image, for a clone.
    pub(crate) fn private(&self) -> Result<Mapping, Error> {
        let (base, over) = files(&self.layers)?;
        let mapping = Mapping::of_file(base.as_fd(), base.len(), Sharing::Private)
            .asked("mapping a clone's memory")?;
        for part in over {
            mapping.overlay(part).asked("mapping a clone's memory")?;
        }
        Ok(mapping)
    }
}

/// The lowest layer's file, and the overlays of the other layers.
fn files(layers: &[Layer]) -> Result<(&MemoryFile, Vec<Overlay<'_>>), Error> {
    let [Layer { bytes: Backing::File(base), .. }, upper @ ..] = layers else {
        return Err(Error::state("internal error: an image without a file"));
    };
    let over = upper.iter().flat_map(|layer| layer.runs.iter().map(|run| overlay(layer, run)));
    Ok((base, over.collect()))
}

/// The overlay that maps a run of a layer over the lower ones.
fn overlay<'a>(layer: &'a Layer, run: &Range<u32>) -> Overlay<'a> {
    match &layer.bytes {
        Backing::File(file) => {
            let range = bytes_of(run);
            Overlay {
                offset: range.start,
                range: range.start..range.end.min(file.len()),
                file: file.as_fd(),
                stands: Immutability::Sealed,
            }
        }
        Backing::Store(pins) => pins.part(run),
    }
}

impl GuestMemory for SnapshotMemory {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let range = self.layout.bytes_at(gpa, len).ok_or(MemoryError::NotRam { gpa, len })?;
        let copied = self.copy(range.start, buf);
        copied.map_err(|error| MemoryError::Io { gpa, source: std::io::Error::other(error) })
    }

    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        let range = self.layout.bytes_at(gpa, len)?;
        // Pages of the store may only be copied, as the type's documentation explains.
        let is_sealed = self.pieces(range.clone()).all(|piece| piece.store.is_none());
        self.sealed.bytes().get(range).filter(|_| is_sealed)
    }

    fn snapshot_id(&self) -> Option<SnapshotId> {
        Some(self.id)
    }
}

#[cfg(test)]
mod tests;
