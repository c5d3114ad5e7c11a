//! The host's content store in memory that clones map.

use super::MemoryFile;
use crate::error::KvmError;
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::fingerprint::Fingerprint;
use kaleidoscope_core::memory::Page;
use kaleidoscope_core::store::{Index, PageStore, StoreError, StoreStatistics};
use parking_lot::Mutex;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Pages of all parents' clones on this host, each once, in one file of memory of a bounded size. What images of frozen machines show of
/// it is pinned; the rest goes when there is no room, and saves fetching until then.
#[derive(Debug)]
pub struct ContentStore {
    file: MemoryFile,
    index: Mutex<Index>,
}

impl ContentStore {
    /// An empty store for so many pages. Takes memory as it is filled.
    ///
    /// # Errors
    /// [`KvmError::Refused`] when the system has no memory to give.
    pub fn new(pages: u32) -> Result<Arc<Self>, KvmError> {
        let file = MemoryFile::new(pages as usize * FRAME_BYTES)?;
        Ok(Arc::new(Self { file, index: Mutex::new(Index::new(pages)) }))
    }

    /// Bytes of memory that it takes, as the kernel counts them.
    ///
    /// # Errors
    /// [`KvmError::Refused`] when the kernel does not say.
    pub fn taken(&self) -> Result<u64, KvmError> {
        self.file.taken()
    }

    /// Puts a page in, unless it is here, and pins it; says where it is. `None` when there is no room, or a page is here that has this
    /// fingerprint and other bytes.
    fn put_pinned(&self, key: Fingerprint, page: &Page) -> Result<Option<u32>, KvmError> {
        let mut index = self.index.lock();
        if let Some(slot) = index.pin(key) {
            let mut there = [0; FRAME_BYTES];
            let read = self.file.read(slot as usize * FRAME_BYTES, &mut there);
            if read.is_err() || there != *page {
                index.unpin(key);
            }
            read?;
            return Ok((there == *page).then_some(slot));
        }
        self.insert(&mut index, key, page)?;
        Ok(index.pin(key))
    }

    /// Puts a page in that is not here; `false` when there is no room.
    fn insert(&self, index: &mut Index, key: Fingerprint, page: &Page) -> Result<bool, KvmError> {
        let Ok(inserted) = index.insert(key) else { return Ok(false) };
        let written = self.file.write(inserted.slot as usize * FRAME_BYTES, page);
        if written.is_err() {
            index.remove(key);
        }
        written.map(|()| true)
    }

    fn let_go(&self, runs: &[Run]) {
        let mut index = self.index.lock();
        runs.iter().flat_map(|run| &run.keys).for_each(|key| index.unpin(*key));
    }
}

fn failed(error: &KvmError) -> StoreError {
    StoreError(error.to_string())
}

impl PageStore for ContentStore {
    fn get(&self, key: Fingerprint, page: &mut Page) -> Result<bool, StoreError> {
        // With the index locked, so that nobody puts another page there meanwhile.
        let mut index = self.index.lock();
        let Some(slot) = index.get(key) else { return Ok(false) };
        let read = self.file.read(slot as usize * FRAME_BYTES, page);
        read.map(|()| true).map_err(|error| failed(&error))
    }

    fn put(&self, key: Fingerprint, page: &Page) -> Result<bool, StoreError> {
        let mut index = self.index.lock();
        if index.has(key) {
            return Ok(true);
        }
        self.insert(&mut index, key, page).map_err(|error| failed(&error))
    }

    fn pin(&self, key: Fingerprint) -> Option<u32> {
        self.index.lock().pin(key)
    }

    fn unpin(&self, key: Fingerprint) {
        self.index.lock().unpin(key);
    }

    fn statistics(&self) -> StoreStatistics {
        self.index.lock().statistics()
    }
}

/// Frames whose pages follow each other in the store.
#[derive(Debug)]
struct Run {
    frames: Range<u32>,
    slot: u32,
    keys: Vec<Fingerprint>,
}

/// Pages of the store that an image shows, which stay where they are as long as this lives.
#[derive(Debug)]
pub(super) struct Pins {
    store: Arc<ContentStore>,
    /// In the order of their frames.
    runs: Vec<Run>,
}

impl Pins {
    /// Puts pages of an image into the store, in the order of their frames, and pins those that are shown in the `most` longest runs.
    pub(super) fn new<'p>(
        store: &Arc<ContentStore>,
        pages: impl Iterator<Item = (u32, Fingerprint, &'p Page)>,
        most: usize,
    ) -> Result<Self, KvmError> {
        // From here on what is pinned is unpinned, whatever fails.
        let mut pins = Self { store: Arc::clone(store), runs: Vec::new() };
        for (frame, key, page) in pages {
            let Some(slot) = store.put_pinned(key, page)? else { continue };
            let follows = |run: &&mut Run| {
                run.frames.end == frame && run.slot + (frame - run.frames.start) == slot
            };
            match pins.runs.last_mut().filter(follows) {
                Some(run) => {
                    run.frames.end += 1;
                    run.keys.push(key);
                }
                None => {
                    pins.runs.push(Run { frames: frame..frame + 1, slot, keys: vec![key] });
                }
            }
        }
        pins.runs.sort_by_key(|run| (std::cmp::Reverse(run.keys.len()), run.frames.start));
        let surplus = pins.runs.split_off(most.min(pins.runs.len()));
        store.let_go(&surplus);
        pins.runs.sort_by_key(|run| run.frames.start);
        Ok(pins)
    }

    /// The frames.
    pub(super) fn runs(&self) -> Vec<Range<u32>> {
        self.runs.iter().map(|run| run.frames.clone()).collect()
    }

    /// Whether a frame is among them.
    pub(super) fn has(&self, frame: u32) -> bool {
        self.run(frame).is_some()
    }

    fn run(&self, frame: u32) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.frames.end <= frame);
        self.runs.get(at).filter(|run| run.frames.contains(&frame))
    }

    /// Where a frame is in the store's file.
    pub(super) fn offset(&self, frame: u32) -> usize {
        let slot = self.run(frame).map_or(0, |run| run.slot + (frame - run.frames.start));
        slot as usize * FRAME_BYTES
    }

    /// The store's file.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.store.file.as_fd()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.store.let_go(&self.runs);
    }
}
