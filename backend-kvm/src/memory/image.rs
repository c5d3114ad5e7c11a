//! A guest's RAM as it was at one instant.

use super::file::{MemoryFile, bytes_of};
use super::store::{Pins, RUNS};
use super::{ContentStore, PageSize, bytes, runs};
use crate::error::{Asked, KvmError};
use crate::sys::{Mapping, Overlay, Sealed, Sharing, Stands};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex, Gpa};
use kaleidoscope_core::fingerprint::Fingerprints;
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout, is_zero};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Mappings that one clone's memory is made of at most, those of the store's pages included.
const MAPPINGS: usize = 4 * RUNS;

/// A guest's RAM at the instant of a freeze, in files that are sealed: nobody can change a byte of it.
///
/// The first image of a machine is one file. Later ones are that file and, over it, files with what was written since; what a file
/// of these does not hold takes no memory. Those over the first are of 4 KiB pages, also where that one is of huge pages: what its
/// parent wrote, a clone will write, and shall then copy no more than it writes.
#[derive(Debug)]
pub struct FrozenImage {
    layout: MemoryLayout,
    /// Before the layers, which have the pins of the store's pages that it shows.
    sealed: Sealed,
    /// From the lowest to the highest, each with the frames that it holds; the lowest holds all.
    layers: Vec<Layer>,
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

impl FrozenImage {
    /// What one file holds, which nobody writes to any more.
    pub(crate) fn new(layout: MemoryLayout, file: Arc<MemoryFile>) -> Result<Self, KvmError> {
        let all = 0..layout.frames();
        Self::of_layers(layout, vec![Layer { bytes: Bytes::File(file), runs: vec![all] }])
    }

    /// What one file holds, which nobody writes to any more, but for the pages that are shown from the content store.
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

    /// The same image, which has in common with others what their fingerprints say: those pages are shown from the content store,
    /// into which they are put, and the others are copied. The memory of this one is free when it and its clones are gone.
    ///
    /// Bytes are compared before they are shared. Pages are shown in runs, the longest first, at most as many as mappings are good for:
    /// a store that is filled in the order of frames gives long ones.
    ///
    /// # Errors
    /// [`KvmError`] when the system refuses, or the store fails.
    pub fn sharing(
        &self,
        store: &Arc<ContentStore>,
        fingerprints: &Fingerprints,
    ) -> Result<(Self, Shared), KvmError> {
        let pages = self.bytes().chunks_exact(FRAME_BYTES);
        let frames = (0..self.layout.frames()).zip(pages);
        let known = frames.clone().filter_map(|(n, page)| {
            Some((n, fingerprints.get(FrameIndex(n))?, page.first_chunk()?))
        });
        let pins = Pins::put(store, known)?;
        let runs = pins.runs();
        let mut shared =
            Shared { runs: u32::try_from(runs.len()).unwrap_or(0), ..Shared::default() };
        let file = MemoryFile::new(bytes(&self.layout))?;
        for (n, page) in frames {
            if page.first_chunk().is_some_and(is_zero) {
                shared.zero += 1;
            } else if pins.has(n) {
                shared.shared += 1;
            } else {
                shared.own += 1;
                file.write(n as usize * FRAME_BYTES, page)?;
            }
        }
        let all = 0..self.layout.frames();
        let layers = vec![
            Layer { bytes: Bytes::File(Arc::new(file)), runs: vec![all] },
            Layer { bytes: Bytes::Store(Arc::new(pins)), runs },
        ];
        Ok((Self::of_layers(self.layout.clone(), layers)?, shared))
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
        let (base, over) = files(&layers)?;
        let sealed =
            Sealed::of_files(base.as_fd(), base.len(), &over).asked("mapping frozen memory")?;
        Ok(Self { layout, layers, sealed })
    }

    /// Frames that are shown from the content store, in order.
    #[must_use]
    pub fn shared(&self) -> Vec<Range<u32>> {
        let shared = self.layers.iter().filter(|layer| matches!(layer.bytes, Bytes::Store(_)));
        runs::normal(shared.flat_map(|layer| layer.runs.iter().cloned()).collect())
    }

    /// All bytes, in frame-index order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // The rest of the last page is nobody's.
        self.sealed.bytes().get(..bytes(&self.layout)).unwrap_or_default()
    }

    /// Bytes of memory that the image takes, those that it shares with earlier images of the machine included, those of the content store
    /// not; as the kernel counts them.
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
                stands: Stands::Sealed,
            }
        }
        Bytes::Store(pins) => pins.part(run),
    }
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
    use kaleidoscope_core::fingerprint::{Domain, contents};
    use kaleidoscope_core::store::PageStore;
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

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
        let Bytes::File(file) = &image.layers[0].bytes else { panic!() };
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

    /// What the host's key says of all frames of an image.
    fn fingerprints(image: &FrozenImage) -> Fingerprints {
        let domain = Domain::new([5; 32]);
        let frames: Vec<_> = (0..image.layout.frames()).map(FrameIndex).collect();
        let found = contents(image, &frames, &domain, NonZeroUsize::MIN).unwrap();
        Fingerprints::new(domain.id(), image.layout.frames(), frames.into_iter().zip(found))
    }

    #[test]
    fn pages_in_common_are_kept_once() {
        let (a, b) = (image(), image());
        let store = ContentStore::new(100).unwrap();
        let (a2, shared) = a.sharing(&store, &fingerprints(&a)).unwrap();
        assert_eq!(shared, Shared { shared: 5, own: 0, zero: 0, runs: 1 });
        let file = MemoryFile::new(5 * FRAME_BYTES).unwrap();
        file.write(2 * FRAME_BYTES, &[77; FRAME_BYTES]).unwrap();
        // The other one was written since.
        let b = b.with(file, runs::normal(vec![2..3, 3..4])).unwrap();
        let (b2, shared) = b.sharing(&store, &fingerprints(&b)).unwrap();
        // Frame 2 has a page of its own, and so a place behind the others; frame 3 is zeros.
        assert_eq!(shared, Shared { shared: 4, own: 0, zero: 1, runs: 3 });
        assert_eq!((a2.taken().unwrap(), b2.taken().unwrap()), (0, 0));
        assert_eq!(
            (numbers(a2.bytes()), numbers(b2.bytes())),
            (numbers(a.bytes()), numbers(b.bytes()))
        );
        let statistics = store.statistics();
        assert_eq!((statistics.pages, statistics.pinned, statistics.pins), (6, 6, 9));
        // And a page each that says what this is and which page is where.
        assert_eq!(store.taken().unwrap(), 8 * FRAME_BYTES as u64);
        // Layers over it, and a clone.
        let file = MemoryFile::new(5 * FRAME_BYTES).unwrap();
        file.write(FRAME_BYTES, &[88; FRAME_BYTES]).unwrap();
        let a3 = a2.with(file, runs::normal(vec![1..2, 1..2])).unwrap();
        drop(a2);
        assert_eq!(numbers(a3.bytes()), [1, 88, 3, 4, 5]);
        let clone = a3.private().unwrap();
        clone.write(17, &[99]).unwrap();
        let mut all = vec![0; 5 * FRAME_BYTES];
        clone.read(0, &mut all).unwrap();
        assert_eq!(numbers(&all), [99, 88, 3, 4, 5]);
        drop((clone, a3));
        assert_eq!(numbers(b2.bytes()), [1, 2, 77, 0, 5], "a clone's writes are its own");
        assert_eq!(store.statistics().pins, 4);
        drop(b2);
        assert_eq!((store.statistics().pins, store.statistics().pinned), (0, 0));
    }

    #[test]
    fn a_fingerprint_that_lies_shares_nothing() {
        let (a, b) = (image(), image());
        let store = ContentStore::new(100).unwrap();
        let (_a, _) = a.sharing(&store, &fingerprints(&a)).unwrap();
        let file = MemoryFile::new(5 * FRAME_BYTES).unwrap();
        file.write(0, &[7; FRAME_BYTES]).unwrap();
        let changed = b.with(file, runs::normal(vec![0..1, 0..1])).unwrap();
        // Those of the image before it was written to.
        let (c, shared) = changed.sharing(&store, &fingerprints(&b)).unwrap();
        assert_eq!((shared.shared, shared.own), (4, 1));
        assert_eq!(numbers(c.bytes()), [7, 2, 3, 4, 5]);
        let full = ContentStore::new(2).unwrap();
        let (c, shared) = changed.sharing(&full, &fingerprints(&changed)).unwrap();
        assert_eq!((shared.shared, shared.own), (2, 3), "no room for more");
        assert_eq!(numbers(c.bytes()), [7, 2, 3, 4, 5]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Images of few different pages come, are written to, and go, in a store that has too little room: none ever shows another
        /// byte, and nothing stays pinned.
        #[test]
        fn images_show_their_own_bytes(
            steps in prop::collection::vec((0u8..4, prop::collection::vec(0u8..12, 16)), 1..24),
            room in 1u32..14,
        ) {
            let layout = MemoryLayout::contiguous(16 * FRAME_BYTES as u64).unwrap();
            let store = ContentStore::new(room).unwrap();
            let mut images: Vec<(FrozenImage, Vec<u8>)> = Vec::new();
            for (what, pages) in steps {
                let file = MemoryFile::new(16 * FRAME_BYTES).unwrap();
                for (n, byte) in pages.iter().enumerate() {
                    file.write(n * FRAME_BYTES, &[*byte; FRAME_BYTES]).unwrap();
                }
                match (what, images.pop()) {
                    (0, Some(_)) => {}
                    (1, Some((image, before))) => {
                        let mut expected = before.clone();
                        let some = [2u32..5, 9..10];
                        for frame in some.iter().cloned().flatten() {
                            expected[frame as usize] = pages[frame as usize];
                        }
                        let newer = image.with(file, some.to_vec()).unwrap();
                        images.push((image, before));
                        images.push((newer, expected));
                    }
                    (_, last) => {
                        images.extend(last);
                        let plain = FrozenImage::new(layout.clone(), Arc::new(file)).unwrap();
                        let (image, shared) = plain.sharing(&store, &fingerprints(&plain)).unwrap();
                        prop_assert_eq!(shared.shared + shared.own + shared.zero, 16);
                        images.push((image, pages));
                    }
                }
                // Fetched pages push others out.
                let page = [what + 100; FRAME_BYTES];
                store.put(Domain::new([5; 32]).fingerprint(&page), &page).unwrap();
                for (image, expected) in &images {
                    prop_assert_eq!(&numbers(image.bytes()), expected);
                    let mut all = vec![0; 16 * FRAME_BYTES];
                    image.private().unwrap().read(0, &mut all).unwrap();
                    prop_assert_eq!(&numbers(&all), expected);
                }
                let statistics = store.statistics();
                prop_assert!(statistics.pages <= room);
            }
            images.clear();
            prop_assert_eq!(store.statistics().pins, 0);
        }
    }
}
