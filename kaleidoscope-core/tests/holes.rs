//! Coloring takes time in proportion to an image's data, not its address space: no hole is read.

#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use kaleidoscope_core::addr::{FrameIndex, Gpa};
use kaleidoscope_core::clone::ports::{Delivery, PageSource, Priority};
use kaleidoscope_core::clone::{Descriptor, LocalSource, Verdict, trust};
use kaleidoscope_core::color::{Color, ColorMap, Frame, FrameKind, KernelIdentity};
use kaleidoscope_core::coloring::{Coloring, ColoringOptions, color};
use kaleidoscope_core::dedup::BuildIds;
use kaleidoscope_core::fingerprint::{Content, Domain, contents, partial_contents};
use kaleidoscope_core::manifest::{ImageIdentity, Limits, Manifest};
use kaleidoscope_core::memory::{
    Backing, Extent, GuestMemory, MemoryError, MemoryLayout, data_frames,
};
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Start and size of hotpluggable memory above the guest's RAM.
const ABOVE: Gpa = Gpa(1 << 40);
const UNPLUGGED: u64 = 8 << 30;

/// A guest with unused memory that is a single hole, which must not be read.
struct Sparse {
    guest: MockGuest,
    layout: MemoryLayout,
    is_borrowed: bool,
    reads: AtomicU64,
}

impl Sparse {
    fn new(is_borrowed: bool) -> Self {
        let builder = GuestBuilder::new(KernelStyle::V6_12).seed(11).ram_bytes(32 << 20);
        let guest = builder.pci_hole_at(16 << 20).build().unwrap();
        let known = guest.memory.layout().regions().iter();
        let known = known.map(|r| (r.start.gpa(), u64::from(r.frames) << 12));
        let ram: Vec<_> = known.chain([(ABOVE, UNPLUGGED)]).collect();
        let layout = MemoryLayout::new(&ram).unwrap();
        Self { guest, layout, is_borrowed, reads: AtomicU64::new(0) }
    }

    fn stored(&self) -> u32 {
        self.guest.memory.layout().frames()
    }

    fn count(&self, gpa: Gpa) {
        assert!(gpa < ABOVE, "the hole is read at {gpa}");
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    fn color(&self, with_registers: bool) -> Coloring {
        let registers = if with_registers { self.guest.registers.clone() } else { Vec::new() };
        color(self, &ColoringOptions::default().registers(registers)).unwrap()
    }
}

impl GuestMemory for Sparse {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.count(gpa);
        self.guest.memory.read(gpa, buf)
    }
    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        self.count(gpa);
        self.guest.memory.slice(gpa, len).filter(|_| self.is_borrowed)
    }
    fn extent(&self, frame: FrameIndex) -> Extent {
        let (stored, all) = (self.stored(), self.layout.frames());
        match frame.0 < stored {
            true => Extent { frames: frame.0..stored, backing: Backing::Data },
            false => Extent { frames: frame.0..all.max(frame.0 + 1), backing: Backing::Hole },
        }
    }
}

#[test]
fn coloring_reads_no_hole_and_finds_the_same() {
    for (is_borrowed, with_registers) in [(true, true), (true, false), (false, false)] {
        let sparse = Sparse::new(is_borrowed);
        let found = sparse.color(with_registers);
        let registers = if with_registers { sparse.guest.registers.clone() } else { Vec::new() };
        let options = ColoringOptions::default().registers(registers);
        let dense = color(&sparse.guest.memory, &options).unwrap();
        let stored = sparse.stored() as usize;
        assert_eq!(found.map.colors()[..stored], *dense.map.colors());
        assert!(found.map.colors()[stored..].iter().all(|color| *color == Color::Unknown));
        assert_eq!(found.map.regions(), dense.map.regions());
    }
}

#[test]
fn coloring_reads_as_often_as_without_the_hole() {
    let sparse = Sparse::new(true);
    sparse.color(true);
    // A page is read a few times: as a record's page, a root table, a page of names.
    let reads = sparse.reads.load(Ordering::Relaxed);
    assert!(reads < 64 * u64::from(sparse.stored()), "{reads} reads");
}

#[test]
fn no_derived_file_reads_a_hole() {
    for is_borrowed in [true, false] {
        let sparse = Sparse::new(is_borrowed);
        let map = sparse.color(true).map;
        let frames = sparse.layout.frames();

        let identity = ImageIdentity::of(&sparse, &map).unwrap();
        identity.verify(&sparse, &map).unwrap();
        trust(&sparse, &map).unwrap();
        let manifest = Manifest::new(map.clone(), identity).to_bytes().unwrap();
        let mut read = Manifest::from_bytes(&manifest, &Limits::for_frames(frames)).unwrap();
        read.verify(&sparse).unwrap();
        let descriptor = Descriptor::of(&sparse, Some(map.clone())).unwrap();
        let descriptor = descriptor.with_holes_of(&sparse);
        let holes: Vec<u32> = descriptor.holes().iter().cloned().flatten().collect();
        assert_eq!(holes, (sparse.stored()..frames).collect::<Vec<_>>());

        let all: Vec<_> = (0..frames).map(FrameIndex).collect();
        let domain = Domain::new([2; 32]);
        let threads = NonZeroUsize::new(2).unwrap();
        let found = contents(&sparse, &all, &domain, threads).unwrap();
        assert!(found[sparse.stored() as usize..].iter().all(|c| *c == Content::Zero));
        let found = partial_contents(&sparse, &all, &domain, threads).unwrap();
        assert!(found[sparse.stored() as usize..].iter().all(|c| *c == Content::Zero));
        BuildIds::read(&sparse, &LocalityOrder::new(map)).unwrap();
        assert_eq!(data_frames(&sparse).count(), sparse.stored() as usize);
    }
}

#[test]
fn pages_of_holes_are_zeros_and_not_read() {
    let sparse = Arc::new(Sparse::new(false));
    let (stored, all) = (sparse.stored(), sparse.layout.frames());
    let source = LocalSource::new(Arc::clone(&sparse) as Arc<dyn GuestMemory>);
    let asked = [stored, stored + 1, all - 1].map(FrameIndex);
    source.request(&asked, Priority::Urgent).unwrap();
    let mut zeros = Vec::new();
    source
        .receive(Duration::ZERO, &mut |delivery| match delivery {
            Delivery::Zero(frame) => zeros.push(frame),
            Delivery::Page(frame, _) | Delivery::Unavailable(frame) => panic!("{frame}"),
        })
        .unwrap();
    assert_eq!(zeros, asked);
}

#[test]
fn a_few_poisoned_frames_among_holes_are_found() {
    let mut sparse = Sparse::new(false);
    let map = sparse.color(true).map;
    let stored = sparse.stored();
    let free = Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() };
    let frames = map.iter().map(|(index, _, frame)| if index.0 < stored { frame } else { free });
    let (layout, kernel) = (sparse.layout.clone(), map.kernel().clone());
    let regions = map.regions().to_vec();
    let with_holes = ColorMap::new(layout, kernel, frames, regions).unwrap();
    let seen = trust(&sparse, &with_holes).unwrap();
    assert_ne!(seen.verdict, Verdict::Poisoned);

    // One free frame in 50 of the stored ones, and in 100,000 of all.
    let of_guest = map.iter().filter(|(_, _, frame)| frame.color == Color::Free);
    for (_, gfn, _) in of_guest.step_by(50) {
        sparse.guest.memory.write(gfn.gpa(), &[0xaa; 4096]).unwrap();
    }
    let seen = trust(&sparse, &with_holes).unwrap();
    assert_eq!(seen.verdict, Verdict::Poisoned, "{seen:?}");
}

#[test]
fn free_frames_that_are_all_holes_are_zeros() {
    let sparse = Sparse::new(false);
    let stored = sparse.stored();
    let free = Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() };
    let frame = |index| if index < stored { Frame::default() } else { free };
    let frames = (0..sparse.layout.frames()).map(frame);
    let layout = sparse.layout.clone();
    let map = ColorMap::new(layout, KernelIdentity::default(), frames, Vec::new()).unwrap();
    let seen = trust(&sparse, &map).unwrap();
    assert_eq!((seen.verdict, seen.free), (Verdict::Zero, sparse.layout.frames() - stored));
}
