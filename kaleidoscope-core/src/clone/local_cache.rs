//! A store of this host as a local cache of one clone.

use super::ports::{LocalCache, Lookup};
use crate::addr::FrameIndex;
use crate::memory::Page;
use crate::store::StoreView;

/// A store that fails has nothing: its pages are then fetched from the source.
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
