//! Snapshot images: their contents, their isolation, and what they share.

use super::*;
use kaleidoscope_core::fingerprint::{Domain, contents};
use kaleidoscope_core::store::PageStore;
use proptest::prelude::*;
use std::num::NonZeroUsize;

/// An image of five frames, filled with their number plus one.
fn image() -> SnapshotMemory {
    let layout = MemoryLayout::new(&[(Gpa(0), 0x2000), (Gpa(0x10000), 0x3000)]).unwrap();
    let file = MemoryFile::new(5 * FRAME_BYTES).unwrap();
    (0u8..5).for_each(|n| {
        file.write(usize::from(n) * FRAME_BYTES, &[n + 1; FRAME_BYTES]).unwrap();
    });
    SnapshotMemory::new(layout, Arc::new(file)).unwrap()
}

fn numbers(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(FRAME_BYTES).map(|page| page[17]).collect()
}

/// All bytes of an image, by copying.
fn copied(image: &SnapshotMemory) -> Vec<u8> {
    let mut all = vec![0; bytes(&image.layout)];
    for (region, start) in image.layout.regions().iter().map(|r| (r, r.first_index.0)) {
        let at = bytes_of(&(start..start + region.frames));
        image.read(region.start.gpa(), &mut all[at]).unwrap();
    }
    if let Some(shown) = image.bytes() {
        assert_eq!(shown, all);
    }
    all
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
    assert_eq!(numbers(&copied(&image)), [1, 2, 3, 4, 5]);
    assert_eq!(image.slice(Gpa(0x11ff0), 0x20).unwrap(), [[4; 16], [5; 16]].as_flattened());
    assert!(image.slice(Gpa(0x1ff0), 0x20).is_none());
}

#[test]
fn frozen_memory_cannot_be_written() {
    let image = image();
    let Backing::File(file) = &image.layers[0].bytes else { panic!() };
    let error = file.write(0, &[7]).unwrap_err();
    assert!(error.to_string().contains("writing to a memory file"), "{error}");
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
    assert_eq!(numbers(&copied(&first)), [1, 2, 3, 4, 5]);
    assert_eq!(numbers(&copied(&second)), [1, 50, 3, 50, 5]);
    assert_eq!(numbers(&copied(&third)), [60, 50, 3, 60, 5]);
    assert_eq!((second.layers(), third.layers()), (2, 3));
    let mut all = vec![0; 5 * FRAME_BYTES];
    third.private().unwrap().read(0, &mut all).unwrap();
    assert_eq!(Some(all.as_slice()), third.bytes());
    // A layer that shows no frame any more is dropped.
    let (file, runs) = changed(&[1], 70);
    assert_eq!(third.with(file, runs).unwrap().layers(), 3);
    assert_eq!(third.taken().unwrap(), 9 * FRAME_BYTES as u64);
}

/// Fingerprints of all frames of an image.
fn fingerprints(image: &SnapshotMemory) -> Fingerprints {
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
    // The other image was written to since.
    let b = b.with(file, runs::normal(vec![2..3, 3..4])).unwrap();
    let (b2, shared) = b.sharing(&store, &fingerprints(&b)).unwrap();
    // Frame 2 has its own page, in a slot after the others; frame 3 is zeros.
    assert_eq!(shared, Shared { shared: 4, own: 0, zero: 1, runs: 3 });
    assert_eq!((a2.taken().unwrap(), b2.taken().unwrap()), (0, 0));
    assert_eq!(
        (numbers(&copied(&a2)), numbers(&copied(&b2))),
        (numbers(&copied(&a)), numbers(&copied(&b)))
    );
    let statistics = store.statistics();
    assert_eq!((statistics.pages, statistics.pinned, statistics.pins), (6, 6, 9));
    // Plus one page each for the store's header and its fingerprint table.
    assert_eq!(store.taken().unwrap(), 8 * FRAME_BYTES as u64);
    // Add a layer over it, and a clone.
    let file = MemoryFile::new(5 * FRAME_BYTES).unwrap();
    file.write(FRAME_BYTES, &[88; FRAME_BYTES]).unwrap();
    let a3 = a2.with(file, runs::normal(vec![1..2, 1..2])).unwrap();
    drop(a2);
    assert_eq!(numbers(&copied(&a3)), [1, 88, 3, 4, 5]);
    let clone = a3.private().unwrap();
    clone.write(17, &[99]).unwrap();
    let mut all = vec![0; 5 * FRAME_BYTES];
    clone.read(0, &mut all).unwrap();
    assert_eq!(numbers(&all), [99, 88, 3, 4, 5]);
    drop((clone, a3));
    assert_eq!(numbers(&copied(&b2)), [1, 2, 77, 0, 5], "a clone's writes are its own");
    assert_eq!(store.statistics().pins, 4);
    drop(b2);
    assert_eq!((store.statistics().pins, store.statistics().pinned), (0, 0));
}

#[test]
fn pages_of_an_unsealed_file_are_copied_and_never_referred_to() {
    let (image, store) = (image(), ContentStore::new(100).unwrap());
    let key = fingerprints(&image);
    let (shared, _) = image.sharing(&store, &key).unwrap();
    assert_eq!((shared.bytes(), shared.slice(Gpa(0x10000), 16)), (None, None));
    // A frame of its own between shared ones.
    let file = MemoryFile::new(5 * FRAME_BYTES).unwrap();
    file.write(3 * FRAME_BYTES, &[88; FRAME_BYTES]).unwrap();
    let mixed = shared.with(file, runs::normal(vec![3..4, 3..4])).unwrap();
    assert_eq!(mixed.shared(), [0..3, 4..5]);
    assert_eq!(mixed.slice(Gpa(0x11000), FRAME_BYTES).unwrap(), [88; FRAME_BYTES]);
    for (at, len) in [(0x0, 1), (0x1fff, 1), (0x10ff0, 0x11), (0x11fff, 2), (0x12000, 0x1000)] {
        assert!(mixed.slice(Gpa(at), len).is_none(), "{at:#x}");
    }
    // Copies work across all borders.
    let mut bytes = [0; 0x2002];
    mixed.read(Gpa(0x10fff), &mut bytes[..0x1002]).unwrap();
    assert_eq!((bytes[0], &bytes[1..0x1001], bytes[0x1001]), (3, &[88; 0x1000][..], 5));
    mixed.read(Gpa(0x10001), &mut bytes).unwrap();
    assert_eq!([bytes[0], bytes[0xffe], bytes[0xfff], bytes[0x2001]], [3, 3, 88, 5]);
    assert!(matches!(mixed.read(Gpa(0x1fff), &mut [0; 2]), Err(MemoryError::NotRam { .. })));
    // The file can be written to through this descriptor in safe code. No reference sees that.
    let given = std::fs::File::from(store.file().try_clone_to_owned().unwrap());
    let end = std::os::unix::fs::FileExt::write_all_at(&given, &[7; 5 * FRAME_BYTES], 8192);
    end.unwrap();
    assert_eq!(numbers(&copied(&mixed)), [7, 7, 7, 88, 7]);
    assert_eq!(mixed.slice(Gpa(0x11000), 1), Some(&[88][..]));
    // An image without shared pages is sealed, as is the image that it was made from.
    assert_eq!(numbers(image.bytes().unwrap()), [1, 2, 3, 4, 5]);
    let (own, _) = image.sharing(&ContentStore::new(0).unwrap(), &key).unwrap();
    assert_eq!(numbers(own.bytes().unwrap()), [1, 2, 3, 4, 5], "the store was full");
}

#[test]
fn only_sealed_files_are_referred_to() {
    let layout = MemoryLayout::contiguous(FRAME_BYTES as u64).unwrap();
    let sealed = MemoryFile::new(FRAME_BYTES).unwrap();
    sealed.seal().unwrap();
    let open = MemoryFile::new(FRAME_BYTES).unwrap();
    for stands in [Immutability::Sealed, Immutability::Pinned(Arc::new(()))] {
        let over = [Overlay { range: 0..FRAME_BYTES, file: open.as_fd(), offset: 0, stands }];
        assert!(Sealed::of_files(sealed.as_fd(), FRAME_BYTES, &over).is_err());
    }
    // A file becomes an image by being sealed: descriptors from before cannot write to it any more.
    let before = open.as_fd().try_clone_to_owned().unwrap();
    let image = SnapshotMemory::new(layout, Arc::new(open)).unwrap();
    let before = std::fs::File::from(before);
    assert!(std::os::unix::fs::FileExt::write_all_at(&before, &[1], 0).is_err());
    assert!(before.set_len(0).is_err());
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&before));
    let again = std::fs::File::options().write(true).open(path);
    let written = again.and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, &[1], 0));
    assert!(written.is_err());
    assert_eq!(image.bytes(), Some(&[0; FRAME_BYTES][..]));
}

#[test]
fn pins_of_an_image_are_not_released_by_fingerprint() {
    let (image, store) = (image(), ContentStore::new(5).unwrap());
    let (shared, _) = image.sharing(&store, &fingerprints(&image)).unwrap();
    let domain = Domain::new([5; 32]);
    let key = |n: u8| domain.fingerprint(&[n; FRAME_BYTES]);
    // Unpinning by fingerprint, any number of times.
    for n in (1..6).cycle().take(50) {
        store.unpin(key(n));
    }
    assert!(store.pin(key(1)).is_some() && store.pin(key(1)).is_some());
    for _ in 0..9 {
        store.unpin(key(1));
    }
    assert_eq!((store.statistics().pins, store.statistics().pinned), (5, 5));
    for n in 100..120 {
        assert!(!store.put(key(n), &[n; FRAME_BYTES]).unwrap(), "the store is full");
    }
    assert_eq!(numbers(&copied(&shared)), [1, 2, 3, 4, 5]);
    drop(shared);
    assert_eq!(store.statistics().pins, 0);
}

#[test]
fn a_wrong_fingerprint_shares_nothing() {
    let (a, b) = (image(), image());
    let store = ContentStore::new(100).unwrap();
    let (_a, _) = a.sharing(&store, &fingerprints(&a)).unwrap();
    let file = MemoryFile::new(5 * FRAME_BYTES).unwrap();
    file.write(0, &[7; FRAME_BYTES]).unwrap();
    let changed = b.with(file, runs::normal(vec![0..1, 0..1])).unwrap();
    // Fingerprints from before the image was written to.
    let (c, shared) = changed.sharing(&store, &fingerprints(&b)).unwrap();
    assert_eq!((shared.shared, shared.own), (4, 1));
    assert_eq!(numbers(&copied(&c)), [7, 2, 3, 4, 5]);
    let full = ContentStore::new(2).unwrap();
    let (c, shared) = changed.sharing(&full, &fingerprints(&changed)).unwrap();
    assert_eq!((shared.shared, shared.own), (2, 3), "the store is full");
    assert_eq!(numbers(&copied(&c)), [7, 2, 3, 4, 5]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Images with few different pages are made, written to and dropped, in a store that is too
    /// small. None ever shows a wrong byte, and no page stays pinned.
    #[test]
    fn images_show_their_own_bytes(
        steps in prop::collection::vec((0u8..4, prop::collection::vec(0u8..12, 16)), 1..24),
        room in 1u32..14,
    ) {
        let layout = MemoryLayout::contiguous(16 * FRAME_BYTES as u64).unwrap();
        let store = ContentStore::new(room).unwrap();
        let mut images: Vec<(SnapshotMemory, Vec<u8>)> = Vec::new();
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
                    let plain = SnapshotMemory::new(layout.clone(), Arc::new(file)).unwrap();
                    let (image, shared) = plain.sharing(&store, &fingerprints(&plain)).unwrap();
                    prop_assert_eq!(shared.shared + shared.own + shared.zero, 16);
                    images.push((image, pages));
                }
            }
            // Fetched pages evict others.
            let page = [what + 100; FRAME_BYTES];
            store.put(Domain::new([5; 32]).fingerprint(&page), &page).unwrap();
            for (image, expected) in &images {
                prop_assert_eq!(&numbers(&copied(image)), expected);
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
