//! The host's content store in memory that clones map.

mod file;
mod pins;
mod reopen;
#[cfg(test)]
mod tests;

pub use file::StoreFileError;
pub(crate) use pins::{Pins, RUNS};

use crate::error::KvmError;
use file::StoreFile;
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::fingerprint::{Domain, Fingerprint};
use kaleidoscope_core::memory::Page;
use kaleidoscope_core::store::{Index, PageStore, StoreError, StoreStatistics};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Pages of all parents' clones on this host, each once, in one file of memory of a bounded size.
/// What images of snapshot machines show of it is pinned; the rest goes when there is no room, and
/// saves fetching until then.
///
/// The file also says which page is where, so that a store can outlive its process, whatever ends
/// that: whoever lives longer keeps the [file](Self::file) (systemd's store of file descriptors, a
/// supervisor), and the next process [opens it again](Self::reopen).
#[derive(Debug)]
pub struct ContentStore {
    file: StoreFile,
    index: Mutex<Index>,
    /// Pins that were taken by name, through [`PageStore`]: nobody lets go of more of them, and so
    /// of a page that an image or a stage shows. Locked before the index.
    named: Mutex<HashMap<Fingerprint, u64>>,
}

impl ContentStore {
    /// An empty store for so many pages. Takes memory as it is filled, beside the pages 16 bytes
    /// for each.
    ///
    /// # Errors
    /// [`KvmError::Refused`] when the system has no memory to give.
    pub fn new(pages: u32) -> Result<Arc<Self>, KvmError> {
        let file = StoreFile::create(pages)?;
        Ok(Self::with(file, Index::new(pages)))
    }

    /// The store that a former process left in a file, with the pages that are of one of these
    /// domains.
    ///
    /// A page is there again if its bytes have the fingerprint that the file says, by one of the
    /// domains' keys; nothing else in the file is trusted. Machines may have outlived that
    /// process, and map any page: so no place that was in use, whoever's page is there, is
    /// written to or given to another page until [`release_former`](Self::release_former). What is
    /// of none of the domains is not there for anybody, and stays in the file for a process
    /// that has its domain.
    ///
    /// Reads every page that is there, and hashes it once for each domain until one fits. Takes
    /// memory in proportion to the pages that the file holds, whatever its size says.
    ///
    /// # Errors
    /// [`KvmError::StoreFile`] when this is not the file of a store, or a process that lives uses
    /// it; [`KvmError::Refused`] when it cannot be read.
    pub fn reopen(file: OwnedFd, domains: &[Domain]) -> Result<Arc<Self>, KvmError> {
        let file = StoreFile::open(file)?;
        let index = reopen::index(&file, domains)?;
        Ok(Self::with(file, index))
    }

    fn with(file: StoreFile, index: Index) -> Arc<Self> {
        Arc::new(Self { file, index: Mutex::new(index), named: Mutex::default() })
    }

    /// The file, for whoever shall keep it when this process has ended.
    ///
    /// Who has it can read and write the pages of all tenants, those that clones show included; so
    /// no [image](super::SnapshotMemory::bytes) refers to them. One store at a time may be open on
    /// it: another process is refused while this one lives, but this one is not, nor is anybody
    /// once this process closed a descriptor of the file.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The machines that were there before the store was opened again are gone: from here on what
    /// they may have shown gives way to other pages. Does nothing for a store that was not
    /// opened again.
    ///
    /// The caller vouches for it. A machine that is left would see other pages than its own, and so
    /// would a [`SnapshotMemory`](super::SnapshotMemory) of this process that shows pages of
    /// the store by which it was [made](super::SnapshotMemory::sharing) before.
    pub fn release_former(&self) {
        self.index.lock().release_former();
    }

    /// Bytes of memory that it takes, as the kernel counts them.
    ///
    /// # Errors
    /// [`KvmError::Refused`] when the kernel does not say.
    pub fn taken(&self) -> Result<u64, KvmError> {
        self.file.taken()
    }

    /// Puts a page in, unless it is here, and pins it; says where it is. `None` when there is no
    /// room, or a page is here that has this fingerprint and other bytes.
    fn put_pinned(&self, key: Fingerprint, page: &Page) -> Result<Option<u32>, KvmError> {
        let mut index = self.index.lock();
        if let Some(slot) = index.pin(key) {
            let mut there = [0; FRAME_BYTES];
            let read = self.file.read(slot, &mut there);
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
        let written = self.file.put(inserted.slot, key, page);
        if written.is_err() {
            index.remove(key);
        }
        written.map(|()| true)
    }

    /// Pins a page for an image or a stage, unless it is not here.
    fn pin_shown(&self, key: Fingerprint) -> Option<u32> {
        self.index.lock().pin(key)
    }

    fn let_go<'k>(&self, keys: impl Iterator<Item = &'k Fingerprint>) {
        let mut index = self.index.lock();
        keys.for_each(|key| index.unpin(*key));
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
        let read = self.file.read(slot, page);
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
        let mut named = self.named.lock();
        let slot = self.pin_shown(key)?;
        let count = named.entry(key).or_default();
        *count = count.saturating_add(1);
        Some(slot)
    }

    /// Lets go of a page that was [pinned](PageStore::pin) here. What images and stages show stays
    /// pinned, however often this is called.
    fn unpin(&self, key: Fingerprint) {
        let mut named = self.named.lock();
        let Entry::Occupied(mut entry) = named.entry(key) else { return };
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
        self.index.lock().unpin(key);
    }

    fn statistics(&self) -> StoreStatistics {
        self.index.lock().statistics()
    }
}
