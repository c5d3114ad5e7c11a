//! What freezes rely on: mappings that become private, and tracked writes.

use super::{Mapping, Sharing, Tracker, own_pages};
use crate::memory::{MemoryFile, PageSize};
use kaleidoscope_core::addr::FRAME_BYTES;
use proptest::prelude::*;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

const PAGES: usize = 24;

fn file() -> MemoryFile {
    let file = MemoryFile::new(PAGES * FRAME_BYTES).unwrap();
    for page in 0..PAGES {
        // Some pages take no memory.
        if page % 3 != 0 {
            file.write(page * FRAME_BYTES, &[1; FRAME_BYTES]).unwrap();
        }
    }
    file
}

fn mapped(file: &MemoryFile, sharing: Sharing) -> Mapping {
    Mapping::of_file(file.as_fd(), file.len(), sharing).unwrap()
}

fn byte(mapping: &Mapping, page: usize) -> u8 {
    let mut byte = [0];
    mapping.read(page * FRAME_BYTES + 7, &mut byte).unwrap();
    byte[0]
}

fn pages(runs: &[Range<usize>]) -> BTreeSet<usize> {
    runs.iter().flat_map(|run| run.start / FRAME_BYTES..run.end / FRAME_BYTES).collect()
}

#[test]
fn a_mapping_keeps_its_bytes_and_its_address_when_it_becomes_private() {
    let file = file();
    let mut mapping = mapped(&file, Sharing::Shared);
    mapping.write(4 * FRAME_BYTES, &[2; FRAME_BYTES]).unwrap();
    mapping.forget(0..mapping.len()).unwrap();
    mapping.write(5 * FRAME_BYTES, &[3; FRAME_BYTES]).unwrap();
    let address = mapping.address();
    mapping.make_private(file.as_fd()).unwrap();
    assert_eq!(mapping.address(), address);
    assert_eq!([1, 4, 5, 6].map(|page| byte(&mapping, page)), [1, 2, 3, 0]);
    mapping.write(4 * FRAME_BYTES, &[9; FRAME_BYTES]).unwrap();
    assert_eq!(byte(&mapping, 4), 9);
    let mut snapshot = [0];
    file.read(4 * FRAME_BYTES, &mut snapshot).unwrap();
    assert_eq!(snapshot, [2], "what is written now is the mapping's own");
}

#[test]
fn private_mappings_never_forget() {
    let mut mapping = mapped(&file(), Sharing::Private);
    mapping.write(0, &[5; FRAME_BYTES]).unwrap();
    assert_eq!(mapping.forget(0..FRAME_BYTES), Err(Errno::INVAL));
    assert_eq!(mapping.make_private(file().as_fd()), Err(Errno::INVAL));
    assert_eq!(byte(&mapping, 0), 5);
    let anonymous = Mapping::anonymous(FRAME_BYTES, PageSize::Small).unwrap();
    assert_eq!(anonymous.forget(0..FRAME_BYTES), Err(Errno::INVAL));
}

#[test]
fn a_mapping_that_could_not_become_private_is_nobodys() {
    let file = file();
    let mut mapping = mapped(&file, Sharing::Shared);
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let unreadable = open(path, OFlags::WRONLY, Mode::empty()).unwrap();
    assert_eq!(mapping.make_private(unreadable.as_fd()), Err(Errno::ACCESS));
    assert_eq!(mapping.len(), 0);
    assert_eq!(mapping.read(0, &mut [0]), Err(Errno::INVAL));
    assert_eq!(mapping.write(0, &[0]), Err(Errno::INVAL));
    assert_eq!(mapping.populate(0..FRAME_BYTES), Err(Errno::INVAL));
}

/// What a guest and its host do to a page.
#[derive(Clone, Copy, Debug)]
enum Touch {
    Read(usize),
    Write(usize),
    /// A page of the mapping's own before it is written.
    Own(usize),
    /// A query for the pages that were written.
    Ask,
}

fn touches() -> impl Strategy<Value = Vec<Touch>> {
    let touch = prop_oneof![
        3 => (0..PAGES).prop_map(Touch::Read),
        4 => (0..PAGES).prop_map(Touch::Write),
        1 => (0..PAGES).prop_map(Touch::Own),
        2 => Just(Touch::Ask),
    ];
    prop::collection::vec(touch, 0..60)
}

impl Touch {
    /// The page, if a freeze has to copy it from now on.
    fn on(self, mapping: &Mapping) -> Option<usize> {
        match self {
            Self::Read(page) => {
                byte(mapping, page);
                None
            }
            Self::Write(page) => {
                mapping.write(page * FRAME_BYTES + 7, &[6]).unwrap();
                Some(page)
            }
            Self::Own(page) => {
                let bytes = page * FRAME_BYTES..(page + 1) * FRAME_BYTES;
                mapping.populate(bytes).unwrap();
                Some(page)
            }
            Self::Ask => None,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A query reports all pages that were written since the query before it, and no page that was
    /// not touched for writing.
    #[test]
    fn writes_are_told_once(before in touches(), after in touches()) {
        let file = file();
        let mapping = Arc::new(mapped(&file, Sharing::Private));
        let tracker = match Tracker::new(Arc::clone(&mapping)) {
            Ok(tracker) => tracker,
            Err(error) => {
                println!("******** SKIPPED: writes cannot be tracked here: {error} ********");
                return Ok(());
            }
        };
        let own: BTreeSet<usize> = before.iter().filter_map(|touch| touch.on(&mapping)).collect();
        prop_assert_eq!(&pages(&tracker.begin().unwrap()), &own);
        prop_assert_eq!(&pages(&own_pages(&mapping).unwrap()), &own);
        // Populating a page that is there already writes nothing, and may be told or not.
        let (mut written, mut maybe) = (BTreeSet::new(), BTreeSet::new());
        for touch in after.into_iter().chain([Touch::Ask]) {
            match (touch, touch.on(&mapping)) {
                (Touch::Ask, _) => {
                    let told = pages(&tracker.written().unwrap());
                    prop_assert!(told.is_superset(&written), "{told:?} lacks some of {written:?}");
                    let all = &written | &maybe;
                    prop_assert!(told.is_subset(&all), "{told:?} has more than {all:?}");
                    written.clear();
                    maybe.clear();
                }
                (Touch::Own(page), _) => {
                    maybe.insert(page);
                }
                (_, page) => written.extend(page),
            }
        }
        mapping.write(0, &[8]).unwrap();
        prop_assert_eq!(pages(&tracker.last_written().unwrap()), BTreeSet::from([0]));
    }
}
