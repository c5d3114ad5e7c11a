//! Reopened stores: after an orderly exit, after a kill, and with damage.

use super::file::{StoreFile, StoreFileError};
use super::*;
use crate::memory::UnfitFile;
use crate::sys::{Mapping, Sharing};
use proptest::prelude::*;
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create, open,
};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::error::Error as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};

/// Offset of the first slot of a small store: after the header and one page of fingerprints.
const SLOTS_OFFSET: u64 = 2 * FRAME_BYTES as u64;

fn domain(n: u8) -> Domain {
    Domain::new([n; 32])
}

/// One of many pages with distinct bytes.
fn page(n: u64) -> Page {
    let mut page = [n.to_le_bytes()[0]; FRAME_BYTES];
    page[..8].copy_from_slice(&n.to_le_bytes());
    page[FRAME_BYTES - 8..].copy_from_slice(&n.to_be_bytes());
    page
}

fn put(store: &ContentStore, domain: &Domain, n: u64) -> bool {
    store.put(domain.fingerprint(&page(n)), &page(n)).unwrap()
}

/// Whether the store has a page; checks its bytes.
fn has(store: &ContentStore, domain: &Domain, n: u64) -> bool {
    let mut found = [0xee; FRAME_BYTES];
    let is_there = store.get(domain.fingerprint(&page(n)), &mut found).unwrap();
    assert!(!is_there || found == page(n), "other bytes than page {n}");
    is_there
}

/// A descriptor of a store's file that outlives the store.
fn file(store: &ContentStore) -> OwnedFd {
    store.file().try_clone_to_owned().unwrap()
}

/// Puts new pages until they evict each other, or the store is full. Returns how many were stored.
fn fill(store: &ContentStore, domain: &Domain) -> u64 {
    let room = u64::from(store.statistics().bound);
    (1 << 40..(1 << 40) + room + 1).filter(|n| put(store, domain, *n)).count() as u64
}

#[test]
fn a_store_comes_back_with_its_pages() {
    let (mine, other) = (domain(1), domain(2));
    let store = ContentStore::new(8).unwrap();
    assert!((0..3).all(|n| put(&store, &mine, n)));
    let kept = file(&store);
    drop(store);
    let store = ContentStore::reopen(kept, &[other, mine.clone()]).unwrap();
    let statistics = store.statistics();
    assert_eq!((statistics.bound, statistics.pages, statistics.former), (8, 3, 3));
    // More pages than there is room for: former pages are not evicted.
    assert_eq!(fill(&store, &mine), 9);
    assert!((0..3).all(|n| has(&store, &mine, n)));
    assert_eq!((store.statistics().pages, store.statistics().evicted), (8, 4));
    // Former pages can be used like any others.
    assert_eq!(store.put_pinned(mine.fingerprint(&page(1)), &page(1)).unwrap(), Some(1));
    store.release_former();
    assert_eq!((store.statistics().pins, store.statistics().former), (1, 0));
    assert!((100..120).all(|n| put(&store, &mine, n)));
    assert_eq!([0, 1, 2].map(|n| has(&store, &mine, n)), [false, true, false]);
    store.unpin_all([mine.fingerprint(&page(1))].iter());
    // Once more, with the pages that it has now.
    let kept = file(&store);
    drop(store);
    let store = ContentStore::reopen(kept, std::slice::from_ref(&mine)).unwrap();
    assert!(has(&store, &mine, 1) && (113..120).all(|n| has(&store, &mine, n)));
    assert_eq!(store.statistics().former, 8);
    assert!(!put(&store, &mine, 7777), "every slot may be mapped");
}

#[test]
fn pages_of_no_domain_stay_apart() {
    let (mine, other) = (domain(1), domain(2));
    let store = ContentStore::new(6).unwrap();
    assert!(put(&store, &mine, 0) && put(&store, &other, 1) && put(&store, &mine, 2));
    let kept = file(&store);
    drop(store);
    let store = ContentStore::reopen(kept, std::slice::from_ref(&mine)).unwrap();
    assert_eq!([0, 2].map(|n| has(&store, &mine, n)), [true, true]);
    assert!(!has(&store, &other, 1));
    assert_eq!((store.statistics().pages, store.statistics().former), (2, 3));
    // It is stored a second time.
    assert!(put(&store, &other, 1));
    fill(&store, &mine);
    assert_eq!(store.statistics().pages, 5, "one slot is reserved");
    let kept = file(&store);
    drop(store);
    let store = ContentStore::reopen(kept, &[other.clone(), mine.clone()]).unwrap();
    assert!(has(&store, &other, 1) && has(&store, &mine, 0) && has(&store, &mine, 2));
    assert_eq!(store.statistics().former, 6);
    let kept = file(&store);
    drop(store);
    // Without a domain there are no pages, and no room until they are released.
    let store = ContentStore::reopen(kept, &[]).unwrap();
    assert_eq!((store.statistics().pages, store.statistics().former), (0, 6));
    assert!(!put(&store, &mine, 5));
    store.release_former();
    assert_eq!((0..10).filter(|n| put(&store, &mine, *n)).count(), 10);
    assert_eq!((store.statistics().pages, store.statistics().evicted), (6, 4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to the table and the pages, a page is right or missing, and no slot that
    /// was in use is written to.
    #[test]
    fn damage_is_never_a_page(
        puts in prop::collection::vec(0u64..12, 0..12),
        damage in prop::collection::vec((0u64..8 * 16, any::<u8>()), 0..6),
        torn in prop::collection::vec((0u64..6, 0u64..4096, any::<u8>()), 0..3),
        swap in prop::option::of((0u64..6, 0u64..6)),
    ) {
        let (mine, other) = (domain(1), domain(2));
        let store = ContentStore::new(6).unwrap();
        puts.iter().for_each(|n| assert!(put(&store, if n % 3 == 0 { &other } else { &mine }, *n)));
        let kept = File::from(file(&store));
        drop(store);
        let used = puts.iter().collect::<std::collections::BTreeSet<_>>().len().min(6);
        if let Some((a, b)) = swap {
            let (mut one, mut two) = ([0; 16], [0; 16]);
            kept.read_exact_at(&mut one, 4096 + a * 16).unwrap();
            kept.read_exact_at(&mut two, 4096 + b * 16).unwrap();
            kept.write_all_at(&two, 4096 + a * 16).unwrap();
            kept.write_all_at(&one, 4096 + b * 16).unwrap();
        }
        damage.iter().for_each(|(at, byte)| kept.write_all_at(&[*byte], 4096 + at).unwrap());
        for (slot, at, byte) in torn.iter().filter(|(slot, ..)| *slot < used as u64) {
            kept.write_all_at(&[*byte], SLOTS_OFFSET + slot * 4096 + at).unwrap();
        }
        let bytes = |slot: usize| {
            let mut bytes = [0; FRAME_BYTES];
            kept.read_exact_at(&mut bytes, SLOTS_OFFSET + slot as u64 * 4096).unwrap();
            bytes
        };
        let before: Vec<Page> = (0..used).map(bytes).collect();
        let file = kept.try_clone().unwrap().into();
        let store = ContentStore::reopen(file, std::slice::from_ref(&mine)).unwrap();
        (0..12).for_each(|n| { has(&store, &mine, n); });
        prop_assert!((0..12).all(|n| !has(&store, &other, n)));
        prop_assert!(store.statistics().former as usize >= used);
        let room = u64::from(6 - store.statistics().former);
        prop_assert_eq!(fill(&store, &mine), if room == 0 { 0 } else { 7 });
        (0..12).for_each(|n| { has(&store, &mine, n); });
        prop_assert_eq!((0..used).map(bytes).collect::<Vec<_>>(), before);
        prop_assert!(store.statistics().pages <= 6);
        store.release_former();
        prop_assert_eq!(store.statistics().pins, 0);
        prop_assert_eq!(fill(&store, &other), 7);
        (0..12).for_each(|n| { has(&store, &mine, n); });
    }
}

/// A memory file with these bytes at its start.
fn memory(len: u64, seals: SealFlags, start: &[u8]) -> OwnedFd {
    let fd = memfd_create("store", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, len).unwrap();
    let file = File::from(fd);
    if len > 0 {
        file.write_all_at(start, 0).unwrap();
    }
    fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

fn refused(fd: OwnedFd) -> StoreFileError {
    match ContentStore::reopen(fd, &[domain(1)]) {
        Err(error) => *error.source().unwrap().downcast_ref().unwrap(),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn what_is_no_store_is_refused() {
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    let header = |version: u32, flags: u32, pages: u32| {
        let fields = [version, flags, pages].map(u32::to_le_bytes);
        [b"KSTORE\r\n".as_slice(), fields.as_flattened()].concat()
    };
    let len = SLOTS_OFFSET + 6 * 4096;
    let good = header(1, 0, 6);
    assert!(ContentStore::reopen(memory(len, sealed, &good), &[]).is_ok());
    // Where temporary files are in tmpfs, they cannot be sealed.
    let disk = refused(tempfile::tempfile().unwrap().into());
    assert!(
        matches!(disk, StoreFileError::Unfit(UnfitFile::NotMemory | UnfitFile::Seals)),
        "{disk}"
    );
    assert_eq!(refused(std::io::pipe().unwrap().0.into()), UnfitFile::NotMemory.into());
    assert_eq!(refused(memory(len, SealFlags::empty(), &good)), UnfitFile::Seals.into());
    assert_eq!(refused(memory(len, SealFlags::SHRINK, &good)), UnfitFile::Seals.into());
    let snapshot = memory(len, sealed | SealFlags::FUTURE_WRITE, &good);
    assert_eq!(refused(snapshot), UnfitFile::Seals.into());
    let whole = memory(len, sealed, &good);
    let again =
        |flags| open(format!("/proc/self/fd/{}", whole.as_raw_fd()), flags, Mode::empty()).unwrap();
    assert_eq!(refused(again(OFlags::RDONLY)), UnfitFile::Access.into());
    assert_eq!(refused(again(OFlags::RDWR | OFlags::APPEND)), UnfitFile::Access.into());
    assert_eq!(refused(memory(0, sealed, &[])), StoreFileError::Magic);
    assert_eq!(refused(memory(10, sealed, &good[..10])), StoreFileError::Magic);
    assert_eq!(refused(memory(len, sealed, b"KSTORE\n\n")), StoreFileError::Magic);
    assert_eq!(refused(memory(len, sealed, &header(2, 0, 6))), StoreFileError::Version(2));
    assert_eq!(refused(memory(len, sealed, &header(1, 8, 6))), StoreFileError::Flags(8));
    for (size, pages) in [(len, 5), (len, 7), (len, u32::MAX), (len - 4096, 6), (len + 1, 6)] {
        let error = refused(memory(size, sealed, &header(1, 0, pages)));
        let is_it = |s, p| (s, p) == (size, pages);
        assert!(
            matches!(error, StoreFileError::Size { size: s, pages: p, .. } if is_it(s, p)),
            "{error}"
        );
    }
}

#[test]
fn the_largest_store_takes_what_is_in_it() {
    let mine = domain(1);
    let store = ContentStore::new(u32::MAX).unwrap();
    assert!(put(&store, &mine, 1) && put(&store, &mine, 2));
    let kept = File::from(file(&store));
    let last = store.file.offset(u32::MAX - 1) as u64;
    drop(store);
    // Damage far from the pages in use.
    kept.write_all_at(&page(3), last).unwrap();
    let store = ContentStore::reopen(kept.into(), std::slice::from_ref(&mine)).unwrap();
    assert!(has(&store, &mine, 1) && has(&store, &mine, 2) && put(&store, &mine, 3));
    assert_eq!((store.statistics().pages, store.statistics().former), (3, 3));
    store.release_former();
    assert_eq!(store.statistics().former, 0);
    assert!(store.taken().unwrap() < 100 * FRAME_BYTES as u64);
}

/// Environment variable that makes the test below act as the process to be killed; holds the number
/// of pages of its store.
const ROLE: &str = "KALEIDOSCOPE_STORE_TO_BE_KILLED";

/// Pages that the killed process has pinned: the first ones that it put.
const PINNED: u64 = 8;

/// Does nothing unless [`a_killed_process_leaves_a_store`] starts it in another process. There it
/// puts pages until it is killed.
#[test]
fn puts_until_it_is_killed() {
    let Some(room) = std::env::var_os(ROLE) else { return };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let room = room.to_str().unwrap().parse().unwrap();
    let (mine, store) = (domain(1), ContentStore::new(room).unwrap());
    for n in 0..PINNED {
        assert!(put(&store, &mine, n));
        assert!(store.pin(mine.fingerprint(&page(n))).is_some());
    }
    println!("\nstore {}", store.file().as_raw_fd());
    for n in PINNED.. {
        assert!(put(&store, &mine, n));
        if n % 100 == 0 {
            println!("\nput {n}");
        }
        if room > 1000 {
            // Slowly, so that the store is not full when the process is killed.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// A child process, killed and reaped on drop.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_process_leaves_a_store() {
    let mine = domain(1);
    let (_, path) = module_path!().split_once("::").unwrap();
    for (room, puts) in [(64u32, 3), (3000, 1), (64, 17), (3000, 2), (65, 40), (64, 101)] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{path}::puts_until_it_is_killed"), "--nocapture"])
            .env(ROLE, room.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = ChildGuard(child.unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let fd = lines.find_map(|line| line.unwrap().strip_prefix("store ").map(str::to_owned));
        let kept = format!("/proc/{}/fd/{}", child.0.id(), fd.unwrap());
        let kept = || open(&kept, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let (file, second) = (kept(), kept());
        // A machine that outlives the process.
        let len = usize::try_from(fstat(&file).unwrap().st_size).unwrap();
        let machine = Mapping::of_file(file.as_fd(), len, Sharing::Private).unwrap();
        assert_eq!(refused(second), StoreFileError::InUse);
        let marks = lines.map(Result::unwrap).filter(|line| line.starts_with("put "));
        assert_eq!(marks.take(puts).count(), puts);
        drop(child);

        let store = ContentStore::reopen(file, std::slice::from_ref(&mine)).unwrap();
        let shown = |slot: u32| {
            let mut bytes = [0; FRAME_BYTES];
            machine.read(store.file.offset(slot), &mut bytes).unwrap();
            bytes
        };
        let used: Vec<u32> = store.file.written().unwrap().into_iter().flatten().collect();
        let before: Vec<Page> = used.iter().map(|slot| shown(*slot)).collect();
        for (slot, key) in store.file.keys().unwrap() {
            let mut found = [0; FRAME_BYTES];
            // A page that was being put is stored as a whole or not at all.
            if store.get(key, &mut found).unwrap() {
                let n = u64::from_le_bytes(*found.first_chunk().unwrap());
                assert_eq!((found, mine.fingerprint(&found)), (page(n), key));
                assert_eq!(found, shown(slot));
            }
        }
        let statistics = store.statistics();
        println!("killed after {puts}00 puts: {statistics:?}");
        assert!((0..PINNED).all(|n| has(&store, &mine, n)));
        assert!(
            statistics.former as usize == used.len() && statistics.pages + 1 >= statistics.former
        );
        let stored = fill(&store, &mine);
        assert_eq!(stored > 0, used.len() < room as usize);
        assert_eq!(used.iter().map(|slot| shown(*slot)).collect::<Vec<_>>(), before);
        assert!((0..).zip(0..PINNED).all(|(slot, n)| shown(slot) == page(n)));
        drop(machine);
        store.release_former();
        assert_eq!(store.statistics().pins, 0);
        assert!((1 << 50..(1 << 50) + u64::from(room)).all(|n| put(&store, &mine, n)));
        assert!((0..PINNED).all(|n| !has(&store, &mine, n)), "they were evicted");
    }
}

#[test]
fn a_fingerprint_never_names_other_bytes() {
    let file = StoreFile::create(1).unwrap();
    let mine = domain(1);
    let key = || file.keys().unwrap().first().map(|(_, key)| *key);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..20_000 {
                file.put(0, mine.fingerprint(&page(n)), &page(n)).unwrap();
            }
        });
        let mut found = [0; FRAME_BYTES];
        while !writer.is_finished() {
            // What a process would find that opens the file now: no fingerprint occurs
            // twice.
            let before = key();
            file.read(0, &mut found).unwrap();
            if before.is_some() && before == key() {
                assert_eq!(Some(mine.fingerprint(&found)), before);
            }
        }
    });
    assert_eq!(key(), Some(mine.fingerprint(&page(19_999))));
}
