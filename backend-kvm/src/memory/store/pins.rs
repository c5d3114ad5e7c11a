//! Pinned pages of the content store, and their slots.

use super::ContentStore;
use crate::error::{Error, ErrorKind};
use crate::memory::file::{bytes_of, frames_of};
use crate::sys::{Immutability, Overlay};
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::fingerprint::{Domain, Fingerprint};
use kaleidoscope_core::memory::Page;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Maximum number of runs of store pages in one clone's memory. Each run is a mapping, and all
/// clones of a process share the limit of 65,530 mappings (vm.max_map_count).
pub(crate) const MAX_RUNS: usize = 128;

/// Frames whose pages are consecutive in the store.
#[derive(Debug)]
struct Run {
    frames: Range<u32>,
    slot: u32,
    keys: Vec<Fingerprint>,
}

/// Pages of the store that an image or a shared page cache maps. They are pinned while this lives.
#[derive(Debug)]
pub(crate) struct Pins {
    store: Arc<ContentStore>,
    /// Sorted by frame.
    runs: Vec<Run>,
}

impl Pins {
    /// Puts pages of an image into the store, in frame order, and keeps those in the [`MAX_RUNS`]
    /// longest runs pinned. `read` copies the bytes of a frame.
    pub(crate) fn put(
        store: &Arc<ContentStore>,
        pages: impl Iterator<Item = (u32, Fingerprint)>,
        read: impl Fn(u32, &mut Page) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        // From here on, dropping `pins` unpins the pages on any error.
        let mut pins = Self { store: Arc::clone(store), runs: Vec::new() };
        let mut page = [0; FRAME_BYTES];
        for (frame, key) in pages {
            read(frame, &mut page)?;
            if let Some(slot) = store.put_pinned(key, &page)? {
                pins.add(frame, key, slot);
            }
        }
        pins.keep_longest();
        Ok(pins)
    }

    /// Pins the wanted pages that the store already has, given in frame order, and keeps those in
    /// the [`MAX_RUNS`] longest runs.
    ///
    /// There are no bytes to compare with: a page is taken because its fingerprint equals the
    /// frame's. A fingerprint is 128 bits of a hash keyed with the tenant's key, so collisions
    /// cannot be searched for without the key. If the domain is given, the bytes are hashed again,
    /// and a page that does not match its fingerprint is left out.
    pub(crate) fn found(
        store: &Arc<ContentStore>,
        wanted: impl Iterator<Item = (u32, Fingerprint)>,
        domain: Option<&Domain>,
    ) -> Result<Self, Error> {
        let mut pins = Self { store: Arc::clone(store), runs: Vec::new() };
        for (frame, key) in wanted {
            if let Some(slot) = store.pin_mapped(key) {
                pins.add(frame, key, slot);
            }
        }
        pins.keep_longest();
        if let Some(domain) = domain {
            pins.keep_verified(domain)?;
        }
        Ok(pins)
    }

    /// Adds a pinned page; its frame is higher than all others.
    fn add(&mut self, frame: u32, key: Fingerprint, slot: u32) {
        let follows = |run: &&mut Run| {
            run.frames.end == frame && run.slot + (frame - run.frames.start) == slot
        };
        match self.runs.last_mut().filter(follows) {
            Some(run) => {
                run.frames.end += 1;
                run.keys.push(key);
            }
            None => self.runs.push(Run { frames: frame..frame + 1, slot, keys: vec![key] }),
        }
    }

    fn keep_longest(&mut self) {
        self.runs.sort_by_key(|run| (std::cmp::Reverse(run.keys.len()), run.frames.start));
        let surplus = self.runs.split_off(MAX_RUNS.min(self.runs.len()));
        self.store.unpin_all(surplus.iter().flat_map(|run| &run.keys));
        self.runs.sort_by_key(|run| run.frames.start);
    }

    /// Truncates each run before the first page that does not match its fingerprint.
    fn keep_verified(&mut self, domain: &Domain) -> Result<(), Error> {
        let mut page = [0; FRAME_BYTES];
        for run in &mut self.runs {
            let mut verified = 0;
            for (slot, key) in (run.slot..).zip(&run.keys) {
                // The page is pinned, so no other thread writes to it.
                self.store.file.read(slot, &mut page)?;
                if domain.fingerprint(&page) != *key {
                    break;
                }
                verified += 1;
            }
            run.frames.end = run.frames.start + verified;
            self.store.unpin_all(run.keys.split_off(verified as usize).iter());
        }
        self.runs.retain(|run| !run.keys.is_empty());
        Ok(())
    }

    /// The runs of frames, sorted.
    pub(crate) fn runs(&self) -> Vec<Range<u32>> {
        self.runs.iter().map(|run| run.frames.clone()).collect()
    }

    /// Whether a frame is among the pinned pages.
    pub(crate) fn has(&self, frame: u32) -> bool {
        self.run(frame).is_some()
    }

    fn run(&self, frame: u32) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.frames.end <= frame);
        self.runs.get(at).filter(|run| run.frames.contains(&frame))
    }

    /// Copies bytes, from an offset in frame-index order, out of frames that lie in one run.
    pub(crate) fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), Error> {
        let frame = frames_of(&(offset..offset)).start;
        let run = self.run(frame);
        let run = run.ok_or_else(|| {
            Error::new(ErrorKind::OutOfRange, format!("frame {frame} is not shared"))
        })?;
        let start = bytes_of(&run.frames).start;
        self.store.file.read_from(run.slot, offset - start, buf)
    }

    /// Where the pages of frames in one run are in the store's file.
    pub(crate) fn part(self: &Arc<Self>, frames: &Range<u32>) -> Overlay<'_> {
        let slot =
            self.run(frames.start).map_or(0, |run| run.slot + (frames.start - run.frames.start));
        Overlay {
            offset: self.store.file.offset(slot),
            range: bytes_of(frames),
            file: self.store.file.as_fd(),
            stands: Immutability::Pinned(Arc::clone(self) as _),
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.store.unpin_all(self.runs.iter().flat_map(|run| &run.keys));
    }
}
