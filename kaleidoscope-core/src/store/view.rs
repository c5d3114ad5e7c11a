//! A store as clones of one parent see it.

use super::{PageStore, StoreError};
use crate::addr::FrameIndex;
use crate::fingerprint::{Domain, Fingerprints};
use crate::memory::Page;
use std::fmt;
use std::sync::Arc;

/// A store by the frames of one parent, for frames whose fingerprints the parent's host computed.
///
/// All clones of a parent share one view. The view verifies each page that it puts into the store:
/// a page server that sends bytes with another fingerprint harms its own clone only. Pages read
/// from the store were verified when they were put in.
#[derive(Clone)]
pub struct StoreView {
    store: Arc<dyn PageStore>,
    fingerprints: Arc<Fingerprints>,
    domain: Arc<Domain>,
}

impl StoreView {
    /// A view of a tenant's store. Tenants may share one store: fingerprints of different domains
    /// never match.
    ///
    /// # Errors
    /// [`StoreError`] if the fingerprints are not of `domain`: no page would be found, and none
    /// could be verified.
    pub fn new(
        store: Arc<dyn PageStore>,
        fingerprints: Arc<Fingerprints>,
        domain: Arc<Domain>,
    ) -> Result<Self, StoreError> {
        if fingerprints.domain() != domain.id() {
            let reason = "the parent's fingerprints are of another domain than this store's tenant";
            return Err(StoreError::new(reason));
        }
        Ok(Self { store, fingerprints, domain })
    }

    /// Copies a frame's page out of the store; `false` if the store does not have it.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read.
    pub fn take(&self, frame: FrameIndex, page: &mut Page) -> Result<bool, StoreError> {
        let Some(key) = self.fingerprints.get(frame) else { return Ok(false) };
        self.store.get(key, page)
    }

    /// Puts a frame from another source into the store, if the frame has a fingerprint and `page`
    /// matches it. Returns whether the store has the page now.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be written.
    pub fn keep(&self, frame: FrameIndex, page: &Page) -> Result<bool, StoreError> {
        let Some(key) = self.fingerprints.get(frame) else { return Ok(false) };
        if self.domain.fingerprint(page) != key {
            return Ok(false);
        }
        self.store.put(key, page)
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn PageStore> {
        &self.store
    }

    /// The fingerprints of the parent's frames.
    #[must_use]
    pub fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints
    }
}

impl fmt::Debug for StoreView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreView").field("store", &self.store.statistics()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::Content;
    use crate::store::MemoryStore;

    #[test]
    fn only_true_pages_are_kept_and_only_within_a_domain() {
        let (mine, other) = (Domain::new([1; 32]), Domain::new([2; 32]));
        let (page, lie): (Page, Page) = ([7; 4096], [8; 4096]);
        let table = |domain: &Domain| {
            let content = Content::Page(domain.fingerprint(&page));
            Arc::new(Fingerprints::new(domain.id(), 4, [(FrameIndex(2), content)]))
        };
        let store: Arc<dyn PageStore> = Arc::new(MemoryStore::new(8));
        assert!(StoreView::new(Arc::clone(&store), table(&mine), Arc::new(other.clone())).is_err());
        let view = |domain: &Domain| {
            StoreView::new(Arc::clone(&store), table(domain), Arc::new(domain.clone())).unwrap()
        };
        let (mine, other) = (view(&mine), view(&other));
        let mut seen = [0; 4096];
        assert!(!mine.take(FrameIndex(2), &mut seen).unwrap());
        assert!(!mine.keep(FrameIndex(2), &lie).unwrap(), "not the contents of the snapshot");
        assert!(!mine.keep(FrameIndex(1), &page).unwrap(), "the frame has no fingerprint");
        assert!(mine.keep(FrameIndex(2), &page).unwrap());
        assert!(mine.take(FrameIndex(2), &mut seen).unwrap());
        assert_eq!(seen, page);
        assert!(!other.take(FrameIndex(2), &mut seen).unwrap(), "the page of another tenant");
        assert_eq!(store.statistics().pages, 1);
    }
}
