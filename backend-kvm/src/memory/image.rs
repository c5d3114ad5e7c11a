//! A guest's RAM as it was at one instant.

use super::file::{MemoryFile, bytes_of};
use super::{PageSize, bytes, runs};
use crate::error::{Asked, KvmError};
use crate::sys::{Mapping, Sealed, Sharing};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Mappings that one clone's memory is made of at most: a process may have 65,530 (vm.max_map_count), for all its clones.
const MAPPINGS: usize = 512;

/// A guest's RAM at the instant of a freeze, in files that are sealed: nobody can change a byte of it.
///
/// The first image of a machine is one file. Later ones are that file and, over it, files with what was written since; what a file
/// of these does not hold takes no memory. Those over the first are of 4 KiB pages, also where that one is of huge pages: what its
/// parent wrote, a clone will write, and shall then copy no more than it writes.
#[derive(Debug)]
pub struct FrozenImage {
    layout: MemoryLayout,
    /// From the lowest to the highest, each with the frames that it holds; the lowest holds all.
    layers: Vec<Layer>,
    sealed: Sealed,
}

#[derive(Clone, Debug)]
struct Layer {
    file: Arc<MemoryFile>,
    runs: Vec<Range<u32>>,
}

impl FrozenImage {
    /// What one file holds, which nobody writes to any more.
    pub(crate) fn new(layout: MemoryLayout, file: Arc<MemoryFile>) -> Result<Self, KvmError> {
        let all = 0..layout.frames();
        Self::of_layers(layout, vec![Layer { file, runs: vec![all] }])
    }

    /// This image with other bytes in some frames (sorted and joined): those that `file` holds, which nobody writes to any more.
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
            let end = range.end.min(self.sealed.bytes().len());
            let bytes = self.sealed.bytes().get(range.start..end);
            file.write(range.start, bytes.unwrap_or_default())?;
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
        layers.push(Layer { file: Arc::new(file), runs: all });
        Self::of_layers(self.layout.clone(), layers)
    }

    /// Runs (normal) that begin and end where the lowest layer can be cut.
    fn whole_pages(&self, changed: &[Range<u32>]) -> Vec<Range<u32>> {
        let pages = self.layers.first().map_or(PageSize::Small, |layer| layer.file.pages());
        runs::normal(changed.iter().map(|run| pages.whole(run)).collect())
    }

    fn of_layers(layout: MemoryLayout, layers: Vec<Layer>) -> Result<Self, KvmError> {
        for layer in &layers {
            layer.file.seal()?;
        }
        let (base, over) = files(&layers)?;
        let sealed =
            Sealed::of_files(base.as_fd(), base.len(), &over).asked("mapping frozen memory")?;
        Ok(Self { layout, layers, sealed })
    }

    /// All bytes, in frame-index order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // The rest of the last page is nobody's.
        self.sealed.bytes().get(..bytes(&self.layout)).unwrap_or_default()
    }

    /// Bytes of memory that the image takes, those that it shares with earlier images of the machine included; as the kernel counts
    /// them.
    ///
    /// # Errors
    /// [`KvmError::Refused`] when the kernel does not say.
    pub fn taken(&self) -> Result<u64, KvmError> {
        self.layers.iter().map(|layer| layer.file.taken()).sum()
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
        for (range, file) in over {
            mapping.overlay(range, file).asked("mapping a clone's memory")?;
        }
        Ok(mapping)
    }
}

/// A range of an image, and the file that it is in.
type Part<'a> = (Range<usize>, BorrowedFd<'a>);

/// The lowest layer's file, and what covers it.
fn files(layers: &[Layer]) -> Result<(&MemoryFile, Vec<Part<'_>>), KvmError> {
    let [base, upper @ ..] = layers else {
        return Err(KvmError::State("an image without a layer".into()));
    };
    let part = |layer: &'_ Layer, run: &Range<u32>| {
        bytes_of(run).start..bytes_of(run).end.min(layer.file.len())
    };
    let over = upper
        .iter()
        .flat_map(|layer| layer.runs.iter().map(move |run| (part(layer, run), layer.file.as_fd())));
    Ok((&base.file, over.collect()))
}

impl GuestMemory for FrozenImage {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let bytes = self.slice(gpa, buf.len());
        buf.copy_from_slice(bytes.ok_or(MemoryError::NotRam { gpa, len: buf.len() })?);
        Ok(())
    }

    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        self.layout.bytes_at(gpa, len).and_then(|range| self.bytes().get(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::addr::FRAME_BYTES;

    /// An image of five frames, which hold their number plus one.
    fn image() -> FrozenImage {
        let layout = MemoryLayout::new(&[(Gpa(0), 0x2000), (Gpa(0x10000), 0x3000)]).unwrap();
        let file = MemoryFile::new(5 * FRAME_BYTES).unwrap();
        (0u8..5).for_each(|n| {
            file.write(usize::from(n) * FRAME_BYTES, &[n + 1; FRAME_BYTES]).unwrap();
        });
        FrozenImage::new(layout, Arc::new(file)).unwrap()
    }

    fn numbers(bytes: &[u8]) -> Vec<u8> {
        bytes.chunks(FRAME_BYTES).map(|page| page[17]).collect()
    }

    #[test]
    fn a_clone_s_writes_are_its_own() {
        let image = image();
        let (a, b) = (image.private().unwrap(), image.private().unwrap());
        a.write(FRAME_BYTES + 17, &[99]).unwrap();
        let mut byte = [0];
        a.read(FRAME_BYTES + 17, &mut byte).unwrap();
        assert_eq!(byte, [99]);
        b.read(FRAME_BYTES + 17, &mut byte).unwrap();
        assert_eq!(byte, [2]);
        assert_eq!(numbers(image.bytes()), [1, 2, 3, 4, 5]);
        assert_eq!(image.slice(Gpa(0x11ff0), 0x20).unwrap(), [[4; 16], [5; 16]].as_flattened());
        assert!(image.slice(Gpa(0x1ff0), 0x20).is_none());
    }

    #[test]
    fn frozen_memory_cannot_be_written() {
        let image = image();
        let file = &image.layers[0].file;
        let error = file.write(0, &[7]).unwrap_err();
        assert!(error.to_string().contains("writing to a file of memory"), "{error}");
        assert!(Mapping::of_file(file.as_fd(), FRAME_BYTES, Sharing::Shared).is_err());
        let open = MemoryFile::new(FRAME_BYTES).unwrap();
        assert!(Sealed::of_files(open.as_fd(), FRAME_BYTES, &[]).is_err(), "not sealed");
    }

    #[test]
    fn layers_show_the_newest_bytes() {
        let first = image();
        let changed = |frames: &[u32], byte: u8| {
            let file = MemoryFile::new(5 * FRAME_BYTES).unwrap();
            for frame in frames {
                file.write(*frame as usize * FRAME_BYTES, &[byte; FRAME_BYTES]).unwrap();
            }
            (file, runs::normal(frames.iter().map(|f| *f..*f + 1).collect()))
        };
        let (file, runs) = changed(&[1, 3], 50);
        let second = first.with(file, runs).unwrap();
        let (file, runs) = changed(&[0, 3], 60);
        let third = second.with(file, runs).unwrap();
        assert_eq!(numbers(first.bytes()), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(second.bytes()), [1, 50, 3, 50, 5]);
        assert_eq!(numbers(third.bytes()), [60, 50, 3, 60, 5]);
        assert_eq!((second.layers(), third.layers()), (2, 3));
        let mut all = vec![0; 5 * FRAME_BYTES];
        third.private().unwrap().read(0, &mut all).unwrap();
        assert_eq!(all, third.bytes());
        // A layer that shows nothing any more goes.
        let (file, runs) = changed(&[1], 70);
        assert_eq!(third.with(file, runs).unwrap().layers(), 3);
        assert_eq!(third.taken().unwrap(), 9 * FRAME_BYTES as u64);
    }
}
