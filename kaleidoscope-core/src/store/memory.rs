//! A store in process memory: for the caches of page servers, mock machines and tests. Stores that
//! clones can map are provided by the backends.

use super::{Index, PageStore, StoreError, StoreStatistics};
use crate::fingerprint::Fingerprint;
use crate::memory::Page;
use crate::sync::Mutex;

/// Pages in this process's memory, allocated as the store fills.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    index: Index,
    /// Pages by slot.
    pages: Vec<Box<Page>>,
}

impl MemoryStore {
    /// An empty store for up to `bound` pages.
    #[must_use]
    pub fn new(bound: u32) -> Self {
        Self { inner: Mutex::new(Inner { index: Index::new(bound), pages: Vec::new() }) }
    }
}

impl PageStore for MemoryStore {
    fn get(&self, key: Fingerprint, page: &mut Page) -> Result<bool, StoreError> {
        let mut inner = self.inner.lock();
        let Some(slot) = inner.index.get(key) else { return Ok(false) };
        let kept = inner.pages.get(slot as usize);
        *page = **kept.ok_or_else(|| StoreError::new(format!("slot {slot} was never filled")))?;
        Ok(true)
    }

    fn put(&self, key: Fingerprint, page: &Page) -> Result<bool, StoreError> {
        let mut inner = self.inner.lock();
        if inner.index.has(key) {
            return Ok(true);
        }
        let Ok(inserted) = inner.index.insert(key) else { return Ok(false) };
        match inner.pages.get_mut(inserted.slot as usize) {
            Some(slot) => **slot = *page,
            // The index allocates slots in ascending order, so the next slot is at the end.
            None => inner.pages.push(Box::new(*page)),
        }
        Ok(true)
    }

    fn pin(&self, key: Fingerprint) -> Option<u32> {
        self.inner.lock().index.pin(key)
    }

    fn unpin(&self, key: Fingerprint) {
        self.inner.lock().index.unpin(key);
    }

    fn statistics(&self) -> StoreStatistics {
        self.inner.lock().index.statistics()
    }
}
