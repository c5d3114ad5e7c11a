//! The host's content store: pages that clones of any parent on a host have in common, each kept
//! once.
//!
//! A store is of a bounded size and evicts what was not used for the longest time, unless somebody
//! has it [pinned](PageStore::pin) (mapped). It finds pages by their [`Fingerprint`], of which it
//! has no opinion: who puts a page in vouches for it. [`StoreView`] does: it is what a clone of one
//! parent sees of a store, and puts in only pages whose bytes have the fingerprint that the
//! parent's host computed for them.

mod index;
mod memory;
mod view;

pub use index::{Full, Index, Inserted};
pub use memory::MemoryStore;
pub use view::{DomainMismatch, StoreView};

use crate::fingerprint::Fingerprint;
use crate::memory::Page;
use thiserror::Error;

/// Why a store cannot go on.
#[derive(Debug, Error)]
#[error("the content store: {0}")]
pub struct StoreError(
    /// What failed, where.
    pub String,
);

/// What a store holds and has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreStatistics {
    /// Pages that it can hold.
    pub bound: u32,
    /// Pages that it holds.
    pub pages: u32,
    /// Pages among them that somebody has pinned, which are not evicted.
    pub pinned: u32,
    /// Pins of them: a page that three images show has three.
    pub pins: u64,
    /// Slots that stay as they are because machines from before the store was opened again may
    /// show them, whether it knows the page that is there (then it is among the pinned ones)
    /// or not.
    pub former: u32,
    /// Pages that were asked for and were there.
    pub hits: u64,
    /// Pages that were asked for and were not there.
    pub misses: u64,
    /// Pages that had to go for others.
    pub evicted: u64,
}

/// Pages by their fingerprints. Called by many threads at once.
pub trait PageStore: Send + Sync {
    /// Copies a page out; `false` when it is not here.
    ///
    /// # Errors
    /// [`StoreError`] when the store's memory cannot be read.
    fn get(&self, key: Fingerprint, page: &mut Page) -> Result<bool, StoreError>;

    /// Puts a page in, if it is not here and there is room for it; says whether it is here now.
    ///
    /// # Errors
    /// [`StoreError`] when the store's memory cannot be written.
    fn put(&self, key: Fingerprint, page: &Page) -> Result<bool, StoreError>;

    /// Keeps a page where it is until it is unpinned as often; says in which slot that is, or
    /// `None` when it is not here.
    fn pin(&self, key: Fingerprint) -> Option<u32>;

    /// Lets go of a page that was pinned.
    fn unpin(&self, key: Fingerprint);

    /// What it holds and has done.
    fn statistics(&self) -> StoreStatistics;
}
