//! Build ids of the files in a guest's page cache.

use super::catalog::position;
use crate::addr::{FRAME_BYTES, FRAME_SIZE, FrameIndex};
use crate::color::{FrameKind, Order, Region, RegionId};
use crate::image::elf::{build_id, note_segments};
use crate::memory::{GuestMemory, MemoryError, Page, read_page};
use crate::prefetch::LocalityOrder;
use crate::region_name::RegionName;

/// Maximum number of notes parsed per file. Linkers write about five.
const MAX_NOTES: u32 = 64;

/// The GNU build ids of the programs and libraries in a guest's page cache.
///
/// A linker derives the id from its output. So equal ids mean equal files, whatever their inode
/// numbers, and different ids mean different files, whatever their sizes. Takes about 50 bytes per
/// id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BuildIds {
    /// By ascending region.
    ids: Vec<(RegionId, Box<[u8]>)>,
}

impl BuildIds {
    /// Reads the build ids of all files that have a path and their first page in the page cache.
    /// Reads at most one more page per file, if the id lies there. A file has no id here if it is
    /// not an ELF file, if the id is longer than 64 bytes or crosses a page boundary, or if the
    /// image lacks a page that is needed.
    ///
    /// # Errors
    /// The first [`MemoryError`] other than [`MemoryError::Missing`].
    pub fn read(memory: &dyn GuestMemory, locality: &LocalityOrder) -> Result<Self, MemoryError> {
        let mut ids = Vec::new();
        let mut buffers = Buffers { first: [0; FRAME_BYTES], other: [0; FRAME_BYTES] };
        for (number, region) in (0..).zip(locality.map().regions()) {
            if !is_named_file(region) {
                continue;
            }
            let file =
                CachedFile { memory, locality, frames: locality.run(locality.range(number)) };
            if let Some(id) = file.build_id(&mut buffers)? {
                ids.push((RegionId(number), id));
            }
        }
        Ok(Self { ids })
    }

    /// The build id of the file in a region.
    #[must_use]
    pub fn get(&self, region: RegionId) -> Option<&[u8]> {
        let at = self.ids.binary_search_by_key(&region, |(of, _)| *of).ok()?;
        self.ids.get(at).map(|(_, id)| &**id)
    }

    /// Number of files with a build id.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no file has a build id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// A set of these ids, by ascending region.
    #[cfg(test)]
    pub(super) fn of(ids: &[(u32, &[u8])]) -> Self {
        Self { ids: ids.iter().map(|(region, id)| (RegionId(*region), (*id).into())).collect() }
    }
}

/// Whether a region is a file with a path. Without a path no other guest could look up its id.
fn is_named_file(region: &Region) -> bool {
    region.order == Order::FileOffset
        && matches!(region.kind, FrameKind::File | FrameKind::Shared)
        && RegionName::parse(region.order, &region.name).portable(region.kind).is_some()
}

/// Buffers for pages that cannot be borrowed from the image.
struct Buffers {
    first: Page,
    other: Page,
}

/// A file in the page cache.
struct CachedFile<'a> {
    memory: &'a dyn GuestMemory,
    locality: &'a LocalityOrder,
    /// By ascending position.
    frames: &'a [FrameIndex],
}

impl CachedFile<'_> {
    fn build_id(&self, buffers: &mut Buffers) -> Result<Option<Box<[u8]>>, MemoryError> {
        let Some(first) = self.page(0, &mut buffers.first)? else { return Ok(None) };
        let mut left = MAX_NOTES;
        let mut elsewhere = None;
        for (offset, bytes) in note_segments(first) {
            match offset / FRAME_SIZE {
                0 => {
                    if let Some(id) = build_id(part(first, offset, bytes), &mut left) {
                        return Ok(Some(id.into()));
                    }
                }
                // Only the first segment outside the first page is read: linkers that place notes
                // there write one such segment.
                _ => elsewhere = elsewhere.or(Some((offset, bytes))),
            }
        }
        let Some((offset, bytes)) = elsewhere else { return Ok(None) };
        let page = self.page(offset / FRAME_SIZE, &mut buffers.other)?;
        let id = page.and_then(|page| build_id(part(page, offset, bytes), &mut left));
        Ok(id.map(Box::from))
    }

    /// The page at a position; `None` if it is not in the page cache or the image lacks it.
    fn page<'b>(&'b self, at: u64, buffer: &'b mut Page) -> Result<Option<&'b Page>, MemoryError> {
        let before = self.frames.partition_point(|frame| position(self.locality, *frame) < at);
        let frame = self.frames.get(before).filter(|frame| position(self.locality, **frame) == at);
        let gfn = frame.and_then(|frame| self.memory.layout().gfn_of(*frame));
        gfn.map_or(Ok(None), |gfn| read_page(self.memory, gfn, buffer))
    }
}

/// The part of a segment that lies in its first page.
fn part(page: &Page, offset: u64, bytes: u64) -> &[u8] {
    let start = offset % FRAME_SIZE;
    let end = start.saturating_add(bytes).min(FRAME_SIZE);
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    range.and_then(|(start, end)| page.get(start..end)).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::color::{Color, ColorMap, Frame, KernelIdentity};
    use crate::memory::{MemoryLayout, VecMemory};
    use proptest::prelude::*;

    const ID: [u8; 20] = *b"0123456789abcdefghij";
    /// Offsets of the program headers and the notes in [`library`].
    const HEADERS: usize = 64;
    const NOTES: u64 = 0x2a0;

    fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
        page[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A note in the format of elf(5).
    fn note(owner: &[u8], kind: u32, contents: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for number in [owner.len(), contents.len()] {
            note.extend(u32::try_from(number).unwrap().to_le_bytes());
        }
        note.extend(kind.to_le_bytes());
        for part in [owner, contents] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    /// The notes that linkers write: the ABI tag, then the build id.
    fn notes() -> Vec<u8> {
        [note(b"GNU\0", 1, &[0; 16]), note(b"GNU\0", 3, &ID)].concat()
    }

    /// The first page of a library with one PT_LOAD and one PT_NOTE segment; the notes lie at file
    /// offset `offset`.
    fn headers(offset: u64, bytes: u64) -> Vec<u8> {
        let mut page = vec![0; FRAME_BYTES];
        put(&mut page, 0, b"\x7fELF\x02\x01\x01");
        put(&mut page, 16, &[3, 0, 62, 0, 1]);
        put(&mut page, 32, &HEADERS.to_le_bytes());
        put(&mut page, 54, &[56, 0, 2, 0]);
        for (at, kind, offset, bytes) in [(64, 1u32, 0, 0x900), (120, 4, offset, bytes)] {
            put(&mut page, at, &kind.to_le_bytes());
            put(&mut page, at + 8, &offset.to_le_bytes());
            put(&mut page, at + 32, &bytes.to_le_bytes());
        }
        page
    }

    /// A library with its notes at `offset`, padded to whole pages.
    fn library(offset: u64, notes: &[u8]) -> Vec<u8> {
        let mut file = headers(offset, notes.len() as u64);
        let offset = usize::try_from(offset).unwrap();
        file.resize((offset + notes.len()).next_multiple_of(FRAME_BYTES), 0);
        put(&mut file, offset, notes);
        file
    }

    /// Memory that counts reads; one page can be missing and one unreadable.
    struct Counted {
        memory: VecMemory,
        is_borrowed: bool,
        missing: Option<Gpa>,
        broken: Option<Gpa>,
        reads: std::sync::atomic::AtomicUsize,
    }

    impl GuestMemory for Counted {
        fn layout(&self) -> &MemoryLayout {
            self.memory.layout()
        }
        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
            self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if self.missing == Some(gpa) {
                return Err(MemoryError::Missing { gpa, len: buf.len() });
            }
            if self.broken == Some(gpa) {
                return Err(MemoryError::Io { gpa, source: std::io::Error::other("bad disk") });
            }
            self.memory.read(gpa, buf)
        }
        fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
            self.memory.slice(gpa, len).filter(|_| self.is_borrowed)
        }
    }

    /// Pages of a file, with their positions.
    type Pages<'a> = &'a [(u64, &'a [u8])];

    /// A guest with these regions, whose pages are in descending order in memory.
    fn guest(regions: &[(FrameKind, &str, Pages<'_>)]) -> (Counted, LocalityOrder) {
        let (mut frames, mut bytes, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for (id, (kind, name, pages)) in (0..).map(RegionId).zip(regions) {
            all.push(Region::new(*kind, Order::FileOffset, *name));
            for (position, page) in pages.iter().rev() {
                let (color, region) = (Color::FileCache, Some(id));
                let position = *position;
                frames.push(Frame { kind: *kind, color, region, position, ..Frame::default() });
                bytes.extend_from_slice(page);
            }
        }
        let layout = MemoryLayout::contiguous(bytes.len() as u64).unwrap();
        let memory = VecMemory::from_bytes(layout.clone(), bytes);
        let map = ColorMap::new(layout, KernelIdentity::default(), frames, all).unwrap();
        let (missing, broken, reads) = (None, None, 0.into());
        (Counted { memory, is_borrowed: false, missing, broken, reads }, LocalityOrder::new(map))
    }

    const PATH: &str = "ext4:1:12:/usr/lib/libc.so.6";

    /// The build id of a file with these bytes, all of which are cached.
    fn id_of(file: &[u8]) -> Option<Vec<u8>> {
        let pages: Vec<_> = (0..).zip(file.chunks(FRAME_BYTES)).collect();
        let (memory, locality) = guest(&[(FrameKind::File, PATH, &pages)]);
        let ids = BuildIds::read(&memory, &locality).unwrap();
        assert!(memory.reads.into_inner() <= 2, "at most two pages");
        ids.get(RegionId(0)).map(<[u8]>::to_vec)
    }

    #[test]
    fn ids_are_found_by_region() {
        let (own, other) = (library(NOTES, &notes()), library(NOTES, &note(b"GNU\0", 3, &[7; 8])));
        let (text, zero): (Vec<u8>, _) = (vec![b'x'; FRAME_BYTES], vec![0; FRAME_BYTES]);
        let (mut memory, locality) = guest(&[
            (FrameKind::File, "ext4:1:2:/etc/passwd", &[(0, &text)]),
            (FrameKind::File, PATH, &[(0, &own), (1, &zero), (7, &zero)]),
            (FrameKind::File, "ext4:1:4:/bin/late", &[(1, &own)]),
            (FrameKind::File, "ext4:1:5:", &[(0, &own)]),
            (FrameKind::BlockDevice, "bdev:1:6:", &[(0, &own)]),
            (FrameKind::Shared, "tmpfs:1:7:/bin/sh", &[(0, &other)]),
        ]);
        for is_borrowed in [false, true] {
            memory.is_borrowed = is_borrowed;
            let ids = BuildIds::read(&memory, &locality).unwrap();
            assert_eq!((ids.len(), ids.is_empty()), (2, false));
            assert_eq!(ids.get(RegionId(1)), Some(&ID[..]));
            assert_eq!(ids.get(RegionId(5)), Some(&[7; 8][..]));
            assert_eq!(ids, BuildIds::of(&[(1, &ID), (5, &[7; 8])]));
        }
        assert_eq!(*memory.reads.get_mut(), 3, "the first page of each file with a path");
        assert!(BuildIds::default().is_empty());
    }

    #[test]
    fn notes_in_another_page_are_followed_once() {
        assert_eq!(id_of(&library(0x1000, &notes())).as_deref(), Some(&ID[..]));
        assert_eq!(id_of(&library(0x5f00, &notes())).as_deref(), Some(&ID[..]));
        // Not in the page cache.
        assert_eq!(id_of(&library(0x5f00, &notes())[..FRAME_BYTES]), None);
        // Two segments elsewhere: only one page is read for both.
        let mut file = library(0x2000, &notes());
        put(&mut file, 64, &4u32.to_le_bytes());
        put(&mut file, 72, &0x1000u64.to_le_bytes());
        assert_eq!(id_of(&file), None);
        // Across two pages.
        assert_eq!(id_of(&library(0xff0, &notes())), None);
        // The id ends with its page.
        let id = note(b"GNU\0", 3, &ID);
        assert_eq!(id_of(&library(0x1000 - id.len() as u64, &id)).as_deref(), Some(&ID[..]));
    }

    #[test]
    fn pages_that_the_image_lacks_are_no_error_but_those_it_cannot_read_are() {
        let (file, sh) = (library(0x1000, &notes()), library(NOTES, &notes()));
        let pages: Vec<_> = (0..).zip(file.chunks(FRAME_BYTES)).collect();
        let (mut memory, locality) = guest(&[
            (FrameKind::File, PATH, &pages),
            (FrameKind::File, "ext4:1:2:/bin/sh", &[(0, &sh)]),
        ]);
        let read = |memory: &Counted| BuildIds::read(memory, &locality);
        assert_eq!(read(&memory).unwrap().len(), 2);
        for page in [0, 0x1000] {
            memory.missing = Some(Gpa(page));
            assert_eq!(read(&memory).unwrap(), BuildIds::of(&[(1, &ID)]));
        }
        memory.missing = None;
        memory.broken = Some(Gpa(0x1000));
        assert!(matches!(read(&memory), Err(MemoryError::Io { .. })));
        memory.broken = Some(Gpa(0));
        assert!(matches!(read(&memory), Err(MemoryError::Io { .. })));
    }

    #[test]
    fn other_files_have_no_id() {
        let with = |at: usize, bytes: &[u8]| {
            let mut file = library(NOTES, &notes());
            put(&mut file, at, bytes);
            id_of(&file)
        };
        assert!(with(0, b"\x7fELF").is_some(), "nothing is changed");
        assert!(with(16, &[2]).is_some(), "a program");
        assert_eq!(with(0, b"MZ"), None);
        assert_eq!(with(4, &[9]), None, "class");
        assert_eq!(with(5, &[2]), None, "big endian");
        assert_eq!(with(16, &[4]), None, "a dump");
        assert_eq!(with(18, &[183]), None, "another architecture");
        for offset in [0x1000 - 111, 0x1000, 1 << 40, u64::MAX - 7, u64::MAX] {
            assert_eq!(with(32, &offset.to_le_bytes()), None, "e_phoff {offset:#x}");
        }
        for size in [0u16, 32, 55, 0xffff] {
            assert_eq!(with(54, &size.to_le_bytes()), None, "e_phentsize {size}");
        }
        for count in [0u16, 1, 73, 0xfffe, 0xffff] {
            assert_eq!(with(56, &count.to_le_bytes()), None, "e_phnum {count}");
        }
        for offset in [0, NOTES + 4, 0xfff, 0x1000, 1 << 40, 1 << 63, u64::MAX - 1, u64::MAX] {
            assert_eq!(with(128, &offset.to_le_bytes()), None, "p_offset {offset:#x}");
        }
        for bytes in [0, 11, 35, 67] {
            assert_eq!(with(152, &u64::to_le_bytes(bytes)), None, "p_filesz {bytes}");
        }
        for bytes in [68, 0x1000, 1 << 63, u64::MAX] {
            assert!(with(152, &u64::to_le_bytes(bytes)).is_some(), "p_filesz {bytes:#x} is cut");
        }
        let at = usize::try_from(NOTES).unwrap();
        for size in [0xd61u32, 0x7fff_ffff, u32::MAX - 3, u32::MAX] {
            assert_eq!(with(at, &size.to_le_bytes()), None, "size of a name {size:#x}");
            assert_eq!(with(at + 4, &size.to_le_bytes()), None, "size of a note {size:#x}");
            assert_eq!(with(at + 36, &size.to_le_bytes()), None, "size of the id {size:#x}");
        }
        assert_eq!(with(at + 40, &[4]), None, "another kind");
        assert_eq!(with(at + 44, b"GNV"), None, "another owner");
    }

    #[test]
    fn ids_and_notes_are_bounded() {
        let with = |notes: &[u8]| id_of(&library(NOTES, notes));
        assert_eq!(with(&note(b"GNU\0", 3, &[5; 64])), Some(vec![5; 64]));
        assert_eq!(with(&note(b"GNU\0", 3, &[5; 65])), None);
        assert_eq!(with(&note(b"GNU\0", 3, &[])), None);
        let many = |count| [note(b"x", 9, &[]).repeat(count), notes()].concat();
        assert!(with(&many(62)).is_some());
        assert_eq!(with(&many(63)), None);
        // Each segment counts its notes against the limit, even if segments overlap.
        let after = |segments: u16| {
            let mut file = library(0xf00, &note(b"x", 9, &[]).repeat(10));
            put(&mut file, 0xfa0, &note(b"GNU\0", 3, &ID));
            put(&mut file, 56, &(segments + 1).to_le_bytes());
            let segment = file[120..176].to_vec();
            for header in 0..=usize::from(segments) {
                put(&mut file, HEADERS + header * 56, &segment);
            }
            let last = HEADERS + usize::from(segments) * 56;
            put(&mut file, last + 8, &0xfa0u64.to_le_bytes());
            put(&mut file, last + 32, &36u64.to_le_bytes());
            id_of(&file)
        };
        assert!(after(5).is_some());
        assert_eq!(after(6), None);
        assert_eq!(after(50), None);
    }

    proptest! {
        /// For any bytes: no panic, at most two pages read, and an id that is found is in the file.
        #[test]
        fn hostile_files_are_survived(
            changes in prop::collection::vec((0usize..0x300, any::<u8>()), 0..40),
            words in prop::collection::vec(
                (
                    0usize..0x180,
                    prop_oneof![Just(u64::MAX), Just(0xffff), 0u64..0x3000, any::<u64>()],
                ),
                0..6,
            ),
            offset in prop_oneof![Just(NOTES), Just(0x1000u64), 0x200u64..0x1f00],
        ) {
            let mut file = library(offset, &notes());
            for (at, byte) in changes {
                put(&mut file, at, &[byte]);
            }
            for (at, word) in words {
                put(&mut file, at, &word.to_le_bytes());
            }
            if let Some(id) = id_of(&file) {
                prop_assert!((1..=64).contains(&id.len()));
                prop_assert!(file.windows(id.len()).any(|bytes| bytes == id));
            }
        }
    }
}
