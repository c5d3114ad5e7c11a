//! The host's content store: pages that clones of any parent on a host have in common, each stored
//! once.
//!
//! A store has a fixed capacity and evicts the least recently used page that is not
//! [pinned](PageStore::pin) (mapped). It finds pages by their [`Fingerprint`] but does not verify
//! them: the caller that puts a page guarantees that page and fingerprint match. [`StoreView`],
//! through which a clone of one parent sees a store, does so: it puts only pages whose fingerprint
//! is the one that the parent's host computed.

mod index;
mod memory;
mod view;

#[cfg(not(feature = "dedup"))]
use index::Index;
#[cfg(feature = "dedup")]
pub use index::{Full, Index, Inserted};
#[cfg(feature = "dedup")]
pub use memory::MemoryStore;
pub use view::StoreView;

use crate::fingerprint::Fingerprint;
use crate::memory::Page;
use thiserror::Error;

/// A store failed.
#[derive(Debug, Error)]
#[error("the content store: {0}")]
pub struct StoreError(Box<dyn std::error::Error + Send + Sync>);

impl StoreError {
    /// An error with a message for people, or the error that led to it.
    #[must_use]
    pub fn new(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

/// Contents and counters of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreStatistics {
    /// Capacity in pages.
    pub bound: u32,
    /// Pages in the store.
    pub pages: u32,
    /// Pages among them that are pinned, which are not evicted.
    pub pinned: u32,
    /// Number of pins: a page mapped by three images has three.
    pub pins: u64,
    /// Slots that are not reused because machines from before the store was reopened may map them,
    /// whether their page is known (then it is among the pinned ones) or not.
    pub former: u32,
    /// Lookups that found their page.
    pub hits: u64,
    /// Lookups that did not find their page.
    pub misses: u64,
    /// Pages evicted.
    pub evicted: u64,
}

/// Pages by fingerprint. Methods may be called from many threads at once.
pub trait PageStore: Send + Sync {
    /// Copies a page out of the store; `false` if it is not in the store.
    ///
    /// # Errors
    /// [`StoreError`] when the store's memory cannot be read.
    fn get(&self, key: Fingerprint, page: &mut Page) -> Result<bool, StoreError>;

    /// Copies a page into the store, unless it is there already or there is no room. Returns
    /// whether the store has the page now.
    ///
    /// # Errors
    /// [`StoreError`] when the store's memory cannot be written.
    fn put(&self, key: Fingerprint, page: &Page) -> Result<bool, StoreError>;

    /// Pins a page: it stays in its slot until it is unpinned as often. Returns the slot, or `None`
    /// if the page is not in the store.
    fn pin(&self, key: Fingerprint) -> Option<u32>;

    /// Removes one pin of a page.
    fn unpin(&self, key: Fingerprint);

    /// The statistics.
    fn statistics(&self) -> StoreStatistics;
}
