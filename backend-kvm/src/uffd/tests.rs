//! The promises that every memory keeps.

use super::SharedPageCache;
use super::memory::UserfaultMemory;
use super::own::Part;
use crate::memory::{ContentStore, PageSize};
use crate::sys::Mapping;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::{Event, FaultQueue, Installed, PageInstaller};
use kaleidoscope_core::fingerprint::{Content, Domain, Fingerprints};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::store::PageStore;
use kaleidoscope_mock::clone::contract::{self, ContractTarget};
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A clone's memory as its vCPUs touch it.
struct Touched {
    pages: UserfaultMemory,
    mapping: Arc<Mapping>,
    has_balloon: bool,
}

impl Touched {
    fn new(frames: u32, is_staged: bool) -> Outcome<Self> {
        let layout = MemoryLayout::contiguous(u64::from(frames) << 12)?;
        let cache = is_staged.then(|| SharedPageCache::new(layout)).transpose()?;
        let mapping = Arc::new(match &cache {
            Some(cache) => cache.map()?,
            None => Mapping::anonymous(frames as usize * FRAME_BYTES, PageSize::Small)?,
        });
        let part = Part { mapping: Arc::clone(&mapping), frames: 0..frames };
        let pages = UserfaultMemory::new(&[part], 2, cache, PageSize::Small)?;
        Ok(Self { pages, mapping, has_balloon: !is_staged })
    }
}

fn offset(frame: FrameIndex, offset: usize) -> usize {
    frame.as_usize() * FRAME_BYTES + offset
}

impl ContractTarget for Touched {
    fn installer(&self) -> &dyn PageInstaller {
        &self.pages
    }

    fn queue(&self) -> &dyn FaultQueue {
        &self.pages
    }

    fn read(&self, frame: FrameIndex, at: usize, buf: &mut [u8]) -> Outcome<()> {
        Ok(self.mapping.read(offset(frame, at), buf)?)
    }

    fn write(&self, frame: FrameIndex, at: usize, bytes: &[u8]) -> Outcome<()> {
        Ok(self.mapping.write(offset(frame, at), bytes)?)
    }

    fn give_back(&self, frames: Range<u32>) -> Outcome<bool> {
        if self.has_balloon {
            let bytes = offset(FrameIndex(frames.start), 0)..offset(FrameIndex(frames.end), 0);
            self.mapping.discard(bytes)?;
        }
        Ok(self.has_balloon)
    }

    fn close(&self) {
        self.pages.revoke();
    }
}

fn is_skipped() -> bool {
    match Touched::new(1, false) {
        Ok(_) => false,
        Err(error) => {
            println!("******** SKIPPED: {error} ********");
            true
        }
    }
}

#[test]
fn copied_memory_keeps_the_contracts() {
    if !is_skipped() {
        contract::installer(&|frames| Touched::new(frames, false)).unwrap();
        contract::fault_queue(&|frames| Touched::new(frames, false)).unwrap();
    }
}

#[test]
fn staged_memory_keeps_the_contracts() {
    if !is_skipped() {
        contract::installer(&|frames| Touched::new(frames, true)).unwrap();
        contract::fault_queue(&|frames| Touched::new(frames, true)).unwrap();
    }
}

/// A page of its own for each number.
fn page(n: u32) -> [u8; FRAME_BYTES] {
    let mut page = [n.to_le_bytes()[0]; FRAME_BYTES];
    page[..4].copy_from_slice(&n.to_le_bytes());
    page
}

/// What the parent's host says of frames that hold the page of their number.
fn fingerprints(domain: &Domain, frames: u32) -> Fingerprints {
    let content = |n: u32| (FrameIndex(n), Content::Page(domain.fingerprint(&page(n))));
    Fingerprints::new(domain.id(), frames, (0..frames).map(content))
}

#[test]
fn a_stage_shows_what_the_store_has() -> Outcome<()> {
    let domain = Domain::new([3; 32]);
    let store = ContentStore::new(9)?;
    let key = |n: u32| domain.fingerprint(&page(n));
    for n in 0..5 {
        store.put(key(n), &page(n))?;
    }
    // The store does not check what is put in; and one of the next two is absent.
    store.put(key(5), &page(99))?;
    store.put(key(7), &page(7))?;
    let layout = MemoryLayout::contiguous(12 << 12)?;
    let known = fingerprints(&domain, 12);
    let cache = SharedPageCache::sharing(layout.clone(), &store, &known, Some(&domain))?;
    assert_eq!(cache.shared(), [0..5, 7..8]);
    assert_eq!(
        SharedPageCache::sharing(layout.clone(), &store, &known, None)?.shared(),
        [0..6, 7..8]
    );
    assert_eq!(store.statistics().pins, 6);
    let stranger = Domain::new([4; 32]);
    assert!(SharedPageCache::sharing(layout.clone(), &store, &known, Some(&stranger)).is_err());
    assert!(SharedPageCache::sharing(layout, &store, &fingerprints(&domain, 11), None).is_err());
    if is_skipped() {
        return Ok(());
    }

    let (mapping, sibling) = (Arc::new(cache.map()?), cache.map()?);
    let part = Part { mapping: Arc::clone(&mapping), frames: 0..12 };
    let pages = UserfaultMemory::new(&[part], 2, Some(Arc::clone(&cache)), PageSize::Small)?;
    assert_eq!(pages.shown(), [0..5, 7..8]);
    let seen = |mapping: &Mapping, n: u32| -> Outcome<[u8; FRAME_BYTES]> {
        let mut seen = [0xee; FRAME_BYTES];
        mapping.read(offset(FrameIndex(n), 0), &mut seen)?;
        Ok(seen)
    };
    // No call hides them, in any order.
    assert_eq!(pages.zero(FrameIndex(0))?, Installed::AlreadyPresent);
    assert_eq!(pages.install(FrameIndex(1), &page(50))?, Installed::AlreadyPresent);
    assert_eq!(pages.install(FrameIndex(5), &page(5))?, Installed::Installed);
    assert_eq!(pages.zero_run(2..12)?, 10);
    for n in [0, 1, 2, 3, 4, 5, 7] {
        assert_eq!(seen(&mapping, n)?, page(n));
    }
    assert_eq!(seen(&mapping, 6)?, [0; FRAME_BYTES]);
    assert_eq!(cache.taken()?, FRAME_BYTES as u64, "the one that was placed");
    // Writes are the clone's own; others in the store give way to each other.
    mapping.write(offset(FrameIndex(3), 0), &[77])?;
    for n in 100..200 {
        assert!(store.put(key(n), &page(n))?);
    }
    let mut kept = [0; FRAME_BYTES];
    assert!(store.get(key(3), &mut kept)?);
    assert_eq!((kept, seen(&sibling, 3)?), (page(3), page(3)));
    // Pinned until the last mapping is gone.
    drop((cache, pages, sibling));
    assert_eq!(store.statistics().pins, 6);
    assert_eq!(seen(&mapping, 4)?, page(4));
    drop(mapping);
    assert_eq!((store.statistics().pins, store.statistics().pinned), (0, 0));
    Ok(())
}

#[test]
fn a_stage_shows_few_runs() -> Outcome<()> {
    let domain = Domain::new([3; 32]);
    let store = ContentStore::new(600)?;
    let put = |n: u32| store.put(domain.fingerprint(&page(n)), &page(n));
    // No two follow each other but those of the last run.
    for n in (0..400).rev().chain(400..450) {
        put(n)?;
    }
    let layout = MemoryLayout::contiguous(500 << 12)?;
    let cache =
        SharedPageCache::sharing(layout, &store, &fingerprints(&domain, 500), Some(&domain))?;
    let shared = cache.shared();
    assert_eq!((shared.len(), shared.last()), (128, Some(&(400..450))));
    assert_eq!(store.statistics().pins, 127 + 50);
    let mapping = cache.map()?;
    for n in shared.into_iter().flatten() {
        let mut seen = [0; FRAME_BYTES];
        mapping.read(offset(FrameIndex(n), 0), &mut seen)?;
        assert_eq!(seen, page(n));
    }
    drop((cache, mapping));
    assert_eq!(store.statistics().pins, 0);
    Ok(())
}

/// Huge pages for a test; the system's pool is as it was afterwards.
struct Pool(String);

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

impl Pool {
    /// Four more than there are, where the system gives any: what is given up is free a little
    /// later.
    fn new() -> Outcome<Self> {
        let before = std::fs::read_to_string(COUNT)?;
        let pool = Self(before);
        let wanted = pool.0.trim().parse::<u32>()? + 4;
        std::fs::write(COUNT, wanted.to_string())?;
        if std::fs::read_to_string(COUNT)?.trim().parse::<u32>()? < wanted {
            return Err("the system has no four huge pages to give".into());
        }
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = std::fs::write(COUNT, &self.0);
    }
}

#[test]
fn a_huge_page_comes_as_a_whole_and_goes_as_a_whole() -> Outcome<()> {
    let Ok(_pool) = Pool::new() else {
        println!("******** SKIPPED: no huge pages by {COUNT} ********");
        return Ok(());
    };
    let mapping = Mapping::anonymous(2 * PageSize::Huge.bytes(), PageSize::Huge)?;
    let (mapping, frames) = (Arc::new(mapping), 0..700);
    let part = Part { mapping: Arc::clone(&mapping), frames };
    let pages = UserfaultMemory::new(&[part], 1, None, PageSize::Huge)?;
    let byte = |frame: u32| frame.to_le_bytes()[0] | 1;
    std::thread::scope(|scope| {
        // A vCPU touches the last frame, and waits until the first has come.
        let vcpu = scope.spawn(|| {
            let mut seen = [0];
            mapping.read(offset(FrameIndex(511), 9), &mut seen).map(|()| seen[0])
        });
        let touched = loop {
            pages.wait(std::time::Duration::from_secs(1))?;
            if let Some(event) = pages.read()? {
                break event;
            }
        };
        let access = kaleidoscope_core::prefetch::Access::Read;
        assert_eq!(touched, Event::Fault { frame: FrameIndex(511), access });
        for frame in (0..512).rev() {
            assert!(!vcpu.is_finished());
            let page = [byte(frame); FRAME_BYTES];
            assert_eq!(pages.install(FrameIndex(frame), &page)?, Installed::Installed);
        }
        assert_eq!(vcpu.join().unwrap()?, byte(511));
        Outcome::Ok(())
    })?;
    for frame in 0..512 {
        let mut seen = [0; FRAME_BYTES];
        mapping.read(offset(FrameIndex(frame), 0), &mut seen)?;
        assert_eq!(seen, [byte(frame); FRAME_BYTES]);
    }
    std::thread::scope(|scope| {
        // Waits until the event is read.
        let balloon = scope.spawn(|| mapping.discard(0..PageSize::Huge.bytes()));
        let event = loop {
            pages.wait(std::time::Duration::from_secs(1))?;
            if let Some(event) = pages.read()? {
                break event;
            }
        };
        assert_eq!(event, Event::Removed(0..512));
        balloon.join().unwrap()?;
        Outcome::Ok(())
    })?;
    assert_eq!(pages.zero(FrameIndex(5))?, Installed::Installed);
    assert_eq!(pages.zero_run(5..9)?, 4);
    let mut seen = [1; FRAME_BYTES];
    mapping.read(offset(FrameIndex(511), 0), &mut seen)?;
    assert_eq!(seen, [0; FRAME_BYTES]);
    // The second page has room that no frame has.
    for frame in 512..700 {
        assert_eq!(pages.zero(FrameIndex(frame))?, Installed::Installed);
    }
    mapping.read(offset(FrameIndex(699), 0), &mut seen)?;
    Ok(())
}
