//! A guest's RAM as it was at one instant.

use super::file::{MemoryFile, bytes_of};
use super::store::{Pins, RUNS};
use super::{ContentStore, PageSize, bytes, runs};
use crate::error::{Asked, KvmError};
use crate::sys::{Immutability, Mapping, Overlay, Sealed, Sharing};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex, Gpa};
use kaleidoscope_core::fingerprint::Fingerprints;
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout, is_zero};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Mappings that one clone's memory is made of at most, those of the store's pages included.
const MAPPINGS: usize = 4 * RUNS;

/// A guest's RAM at the instant of a freeze, in files that are sealed: nobody can change a byte of
/// it.
///
/// Pages that it [shares](Self::sharing) are in the content store's file, which is not sealed:
/// others may have it, and be wrong about it. So these are copied out, and never referred to.
///
/// The first image of a machine is one file. Later ones are that file and, over it, files with what
/// was written since; what a file of these does not hold takes no memory. Those over the first are
/// of 4 KiB pages, also where that one is of huge pages: what its parent wrote, a clone will write,
/// and shall then copy no more than it writes.
#[derive(Debug)]
pub struct SnapshotMemory {
    layout: MemoryLayout,
    /// Frames that are shown from the content store have no bytes here that mean anything.
    sealed: Sealed,
    /// From the lowest to the highest, each with the frames that it holds; the lowest holds all.
    layers: Vec<Layer>,
    /// Frames that are shown from the content store, in order.
    stored: Vec<(Range<u32>, Arc<Pins>)>,
}

/// Bytes of an image that are in one place.
#[derive(Clone, Debug)]
struct Piece<'a> {
    range: Range<usize>,
    /// Where they are if not in the image's own files.
    store: Option<&'a Pins>,
}

#[derive(Clone, Debug)]
struct Layer {
    bytes: Bytes,
    runs: Vec<Range<u32>>,
}

/// Where a layer's bytes are.
#[derive(Clone, Debug)]
enum Bytes {
    /// In a file of its own, in frame-index order.
    File(Arc<MemoryFile>),
    /// In the host's content store.
    Store(Arc<Pins>),
}

/// What sharing an image's pages with others has come to, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shared {
    /// Shown from the store.
    pub shared: u32,
    /// Kept in the image's own memory, zeros aside.
    pub own: u32,
    /// Zeros, which take no memory.
    pub zero: u32,
    /// Runs that the store's pages are shown in, each a mapping for every clone.
    pub runs: u32,
}

impl SnapshotMemory {
    /// What one file holds, which nobody writes to any more.
    pub(crate) fn new(layout: MemoryLayout, file: Arc<MemoryFile>) -> Result<Self, KvmError> {
        let all = 0..layout.frames();
        Self::of_layers(layout, vec![Layer { bytes: Bytes::File(file), runs: vec![all] }])
    }

    /// What one file holds, which nobody writes to any more, but for the pages that are shown from
    /// the content store.
    pub(crate) fn staged(
        layout: MemoryLayout,
        file: Arc<MemoryFile>,
        pins: Option<Arc<Pins>>,
    ) -> Result<Self, KvmError> {
        let all = 0..layout.frames();
        let mut layers = vec![Layer { bytes: Bytes::File(file), runs: vec![all] }];
        if let Some(pins) = pins {
            let runs = pins.runs();
            layers.push(Layer { bytes: Bytes::Store(pins), runs });
        }
        Self::of_layers(layout, layers)
    }

    /// The same image, which has in common with others what their fingerprints say: those pages are
    /// shown from the content store, into which they are put, and the others are copied. The
    /// memory of this one is free when it and its clones are gone.
    ///
    /// Bytes are compared before they are shared. Pages are shown in runs, the longest first, at
    /// most as many as mappings are good for: a store that is filled in the order of frames
    /// gives long ones.
    ///
    /// # Errors
    /// [`KvmError`] when the system refuses, or the store fails.
    pub fn sharing(
        &self,
        store: &Arc<ContentStore>,
        fingerprints: &Fingerprints,
    ) -> Result<(Self, Shared), KvmError> {
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
            Layer { bytes: Bytes::File(Arc::new(file)), runs: vec![all] },
            Layer { bytes: Bytes::Store(Arc::new(pins)), runs },
        ];
        Ok((Self::of_layers(self.layout.clone(), layers)?, shared))
    }

    /// This image with other bytes in some frames (sorted and joined): those that `file` holds,
    /// which nobody writes to any more.
    ///
    /// Frames between them may be written to the file to have fewer runs.
    pub(crate) fn with(
        &self,
        file: MemoryFile,
        changed: Vec<Range<u32>>,
    ) -> Result<Self, KvmError> {
        let upper = self.layers.iter().skip(1).map(|layer| layer.runs.len()).sum::<usize>();
        let all =
            runs::fewer(self.whole_pages(&changed), MAPPINGS.saturating_sub(2 * upper).max(1) / 2);
        for gap in runs::without(&all, &changed) {
            let range = bytes_of(&gap);
            self.copy_to(&file, range.start..range.end.min(self.sealed.bytes().len()))?;
        }
        let mut layers: Vec<Layer> = self.layers.clone();
        // A frame is looked for in the highest layer that has it: the others need not show it.
        for layer in layers.iter_mut().skip(1) {
            layer.runs = runs::without(&layer.runs, &all);
        }
        let mut at = 0;
        layers.retain(|layer| {
            at += 1;
            at == 1 || !layer.runs.is_empty()
        });
        layers.push(Layer { bytes: Bytes::File(Arc::new(file)), runs: all });
        Self::of_layers(self.layout.clone(), layers)
    }

    /// Runs (normal) that begin and end where the lowest layer can be cut.
    fn whole_pages(&self, changed: &[Range<u32>]) -> Vec<Range<u32>> {
        let pages = match self.layers.first().map(|layer| &layer.bytes) {
            Some(Bytes::File(file)) => file.pages(),
            Some(Bytes::Store(_)) | None => PageSize::Small,
        };
        runs::normal(changed.iter().map(|run| pages.whole(run)).collect())
    }

    fn of_layers(layout: MemoryLayout, layers: Vec<Layer>) -> Result<Self, KvmError> {
        for layer in &layers {
            if let Bytes::File(file) = &layer.bytes {
                file.seal()?;
            }
        }
        let (base, mut over) = files(&layers)?;
        over.retain(|part| part.stands == Immutability::Sealed);
        let sealed =
            Sealed::of_files(base.as_fd(), base.len(), &over).asked("mapping snapshot memory")?;
        let in_store = layers.iter().filter_map(|layer| match &layer.bytes {
            Bytes::File(_) => None,
            Bytes::Store(pins) => {
                Some(layer.runs.iter().map(|run| (run.clone(), Arc::clone(pins))))
            }
        });
        let mut stored: Vec<_> = in_store.flatten().collect();
        stored.sort_unstable_by_key(|(run, _)| run.start);
        Ok(Self { layout, layers, sealed, stored })
    }

    /// The bytes of a range, piece by piece.
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

    /// Copies bytes out, from an offset in frame-index order on.
    fn copy(&self, offset: usize, buf: &mut [u8]) -> Result<(), KvmError> {
        let end = offset.checked_add(buf.len()).filter(|end| *end <= self.sealed.bytes().len());
        let end = end.ok_or_else(|| KvmError::State("past the end of an image".into()))?;
        for Piece { range, store } in self.pieces(offset..end) {
            let Some(buf) = buf.get_mut(range.start - offset..range.end - offset) else { continue };
            match store {
                Some(pins) => pins.read(range.start, buf)?,
                None => buf.copy_from_slice(self.sealed.bytes().get(range).unwrap_or_default()),
            }
        }
        Ok(())
    }

    /// Copies bytes to the same place in a file.
    fn copy_to(&self, file: &MemoryFile, range: Range<usize>) -> Result<(), KvmError> {
        let mut page = [0; FRAME_BYTES];
        for Piece { range, store } in self.pieces(range) {
            let Some(pins) = store else {
                let bytes = self.sealed.bytes().get(range.clone()).unwrap_or_default();
                file.write(range.start, bytes)?;
                continue;
            };
            // Whole frames, since runs and requests are.
            for at in range.step_by(FRAME_BYTES) {
                pins.read(at, &mut page)?;
                file.write(at, &page)?;
            }
        }
        Ok(())
    }

    /// Frames that are shown from the content store, in order.
    #[must_use]
    pub fn shared(&self) -> Vec<Range<u32>> {
        runs::normal(self.stored.iter().map(|(run, _)| run.clone()).collect())
    }

    /// All bytes, in frame-index order; `None` for an image that [shares](Self::sharing) pages,
    /// which can be [read](GuestMemory::read): the content store's file is open to others.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        // The rest of the last page is nobody's.
        self.sealed.bytes().get(..bytes(&self.layout)).filter(|_| self.stored.is_empty())
    }

    /// Bytes of memory that the image takes, those that it shares with earlier images of the
    /// machine included, those of the content store not; as the kernel counts them.
    ///
    /// # Errors
    /// [`KvmError::Refused`] when the kernel does not say.
    pub fn taken(&self) -> Result<u64, KvmError> {
        let taken = self.layers.iter().map(|layer| match &layer.bytes {
            Bytes::File(file) => file.taken(),
            Bytes::Store(_) => Ok(0),
        });
        taken.sum()
    }

    /// Files that the image consists of.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// A mapping of the image for a clone: it reads these bytes, and what it writes is its own.
    pub(crate) fn private(&self) -> Result<Mapping, KvmError> {
        let (base, over) = files(&self.layers)?;
        let mapping = Mapping::of_file(base.as_fd(), base.len(), Sharing::Private)
            .asked("mapping a clone's memory")?;
        for part in over {
            mapping.overlay(part).asked("mapping a clone's memory")?;
        }
        Ok(mapping)
    }
}

/// The lowest layer's file, and what covers it.
fn files(layers: &[Layer]) -> Result<(&MemoryFile, Vec<Overlay<'_>>), KvmError> {
    let [Layer { bytes: Bytes::File(base), .. }, upper @ ..] = layers else {
        return Err(KvmError::State("an image without a file".into()));
    };
    let over = upper.iter().flat_map(|layer| layer.runs.iter().map(|run| part(layer, run)));
    Ok((base, over.collect()))
}

/// What a run of a layer covers the lower ones with.
fn part<'a>(layer: &'a Layer, run: &Range<u32>) -> Overlay<'a> {
    match &layer.bytes {
        Bytes::File(file) => {
            let range = bytes_of(run);
            Overlay {
                offset: range.start,
                range: range.start..range.end.min(file.len()),
                file: file.as_fd(),
                stands: Immutability::Sealed,
            }
        }
        Bytes::Store(pins) => pins.part(run),
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
        // Pages of the store can be copied, and not referred to.
        let is_sealed = self.pieces(range.clone()).all(|piece| piece.store.is_none());
        self.sealed.bytes().get(range).filter(|_| is_sealed)
    }
}

#[cfg(test)]
mod tests;
