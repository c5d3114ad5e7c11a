//! The host's content store, in memory that clones map.

mod file;
mod pins;
mod reopen;
#[cfg(test)]
mod tests;

pub(crate) use file::StoreFileError;
pub(crate) use pins::{MAX_RUNS, Pins};

use crate::error::Error;
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

/// Deduplicated pages of all parents' clones on this host, in one memory file of bounded size.
/// Pages that images of snapshotted machines map are pinned. The others are a cache that saves
/// fetching, and are evicted when the store is full.
///
/// The file also records which page is where, so a store can outlive its process, however the
/// process ends. A longer-lived process keeps the [file](Self::file) (systemd's file descriptor
/// store, a supervisor), and the next process [reopens it](Self::reopen).
#[derive(Debug)]
pub struct ContentStore {
    file: StoreFile,
    index: Mutex<Index>,
    /// Number of pins taken through [`PageStore`], by fingerprint. `unpin` releases only these,
    /// never a pin of an image or a shared page cache. Locked before the index.
    named: Mutex<HashMap<Fingerprint, u64>>,
}

impl ContentStore {
    /// An empty store for `pages` pages of 4 KiB. Memory is allocated as the store is filled, with
    /// 16 bytes of metadata per page.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) when the system is out of memory.
    pub fn new(pages: u32) -> Result<Arc<Self>, Error> {
        let file = StoreFile::create(pages)?;
        Ok(Self::with(file, Index::new(pages)))
    }

    /// Reopens the store that a previous process left in a file, with the pages that belong to
    /// these domains.
    ///
    /// A page is restored if its bytes have the fingerprint that the file records, under the key of
    /// one of the domains; nothing else in the file is trusted. Machines may have outlived the
    /// previous process, and may map any page. Therefore no slot that was in use is written to or
    /// reused until [`release_former`](Self::release_former). Pages of other domains are not
    /// accessible, and stay in the file for a process that has their domain.
    ///
    /// Reads every page in use, and hashes it once per domain until one matches. Memory use is
    /// proportional to the pages that the file holds, not to its size.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when this is not the file of a
    ///   store
    /// - [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for another version of the
    ///   format
    /// - [`ErrorKind::InUse`](crate::ErrorKind::InUse) when a running process uses it
    /// - [`ErrorKind::Refused`](crate::ErrorKind::Refused) when it cannot be read
    pub fn reopen(file: OwnedFd, domains: &[Domain]) -> Result<Arc<Self>, Error> {
        let file = StoreFile::open(file)?;
        let index = reopen::index(&file, domains)?;
        Ok(Self::with(file, index))
    }

    fn with(file: StoreFile, index: Index) -> Arc<Self> {
        Arc::new(Self { file, index: Mutex::new(index), named: Mutex::default() })
    }

    /// The store's file, for a process that keeps it after this process has ended.
    ///
    /// A process with this descriptor can read and write the pages of all tenants, including pages
    /// that clones map; therefore no [image](super::SnapshotMemory::bytes) hands out references to
    /// them. One store at a time may be open on the file. The lock excludes other processes while
    /// this one lives, but not further stores in this process, and is lost when this process closes
    /// any descriptor of the file.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Declares that the machines from before the store was reopened are gone: the pages that they
    /// may have mapped can be evicted from now on. Does nothing for a store that was not reopened.
    ///
    /// The caller is responsible for this being true. A remaining machine would see other pages
    /// than its own. So would a [`SnapshotMemory`](super::SnapshotMemory) of this process that was
    /// [made](super::SnapshotMemory::sharing) with the previous store.
    pub fn release_former(&self) {
        self.index.lock().release_former();
    }

    /// Bytes of memory allocated for the store's file, as the kernel counts them.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) when the kernel does not report it.
    pub fn taken(&self) -> Result<u64, Error> {
        self.file.taken()
    }

    /// Puts a page in unless the store has it, pins it, and returns its slot. `None` when the store
    /// is full, or has a page with this fingerprint but other bytes.
    fn put_pinned(&self, key: Fingerprint, page: &Page) -> Result<Option<u32>, Error> {
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

    /// Puts in a page that the store does not have; `false` when the store is full.
    fn insert(&self, index: &mut Index, key: Fingerprint, page: &Page) -> Result<bool, Error> {
        let Ok(inserted) = index.insert(key) else { return Ok(false) };
        let written = self.file.put(inserted.slot, key, page);
        if written.is_err() {
            index.remove(key);
        }
        written.map(|()| true)
    }

    /// Pins a page for an image or a shared page cache; `None` if the store does not have it.
    fn pin_mapped(&self, key: Fingerprint) -> Option<u32> {
        self.index.lock().pin(key)
    }

    fn unpin_all<'k>(&self, keys: impl Iterator<Item = &'k Fingerprint>) {
        let mut index = self.index.lock();
        keys.for_each(|key| index.unpin(*key));
    }
}

fn failed(error: &Error) -> StoreError {
    StoreError::new(error.to_string())
}

impl PageStore for ContentStore {
    fn get(&self, key: Fingerprint, page: &mut Page) -> Result<bool, StoreError> {
        // With the index locked, so that the slot is not reused meanwhile.
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
        let slot = self.pin_mapped(key)?;
        let count = named.entry(key).or_default();
        *count = count.saturating_add(1);
        Some(slot)
    }

    /// Releases a pin that [`pin`](PageStore::pin) took. Pins of images and shared page caches are
    /// not affected, however often this is called.
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
