//! A store on this host, as the local cache of one clone.

use super::ports::{LocalCache, Lookup};
use crate::addr::FrameIndex;
use crate::memory::Page;
use crate::store::StoreView;

/// A failed read of the store is a miss: the page is then fetched from the source.
impl LocalCache for StoreView {
    fn take(&self, frame: FrameIndex, page: &mut Page) -> Lookup {
        if self.fingerprints().is_zero(frame) {
            return Lookup::Zero;
        }
        match StoreView::take(self, frame, page) {
            Ok(true) => Lookup::Page,
            Ok(false) | Err(_) => Lookup::Miss,
        }
    }

    fn keep(&self, frame: FrameIndex, page: &Page) {
        // A page that could not be kept can be fetched again.
        let _ = StoreView::keep(self, frame, page);
    }
}
