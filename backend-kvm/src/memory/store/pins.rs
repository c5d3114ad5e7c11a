//! Pages of the content store that stay where they are, and where that is.

use super::ContentStore;
use crate::error::KvmError;
use kaleidoscope_core::fingerprint::Fingerprint;
use kaleidoscope_core::memory::Page;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Frames whose pages follow each other in the store.
#[derive(Debug)]
struct Run {
    frames: Range<u32>,
    slot: u32,
    keys: Vec<Fingerprint>,
}

/// Pages of the store that an image shows, which stay where they are as long as this lives.
#[derive(Debug)]
pub(crate) struct Pins {
    store: Arc<ContentStore>,
    /// In the order of their frames.
    runs: Vec<Run>,
}

impl Pins {
    /// Puts pages of an image into the store, in the order of their frames, and pins those that are shown in the `most` longest runs.
    pub(crate) fn new<'p>(
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
        store.let_go(surplus.iter().flat_map(|run| &run.keys));
        pins.runs.sort_by_key(|run| run.frames.start);
        Ok(pins)
    }

    /// The frames.
    pub(crate) fn runs(&self) -> Vec<Range<u32>> {
        self.runs.iter().map(|run| run.frames.clone()).collect()
    }

    /// Whether a frame is among them.
    pub(crate) fn has(&self, frame: u32) -> bool {
        self.run(frame).is_some()
    }

    fn run(&self, frame: u32) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.frames.end <= frame);
        self.runs.get(at).filter(|run| run.frames.contains(&frame))
    }

    /// Where a frame is in the store's file.
    pub(crate) fn offset(&self, frame: u32) -> usize {
        let slot = self.run(frame).map_or(0, |run| run.slot + (frame - run.frames.start));
        self.store.file.offset(slot)
    }

    /// The store's file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.store.file()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.store.let_go(self.runs.iter().flat_map(|run| &run.keys));
    }
}
