//! Pages of the content store that stay where they are, and where that is.

use super::ContentStore;
use crate::error::KvmError;
use crate::memory::file::{bytes_of, frames_of};
use crate::sys::{Immutability, Overlay};
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::fingerprint::{Domain, Fingerprint};
use kaleidoscope_core::memory::Page;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Runs of the store's pages that one clone's memory shows at most, each of which is a mapping: a
/// process may have 65,530 (vm.max_map_count), for all its clones.
pub(crate) const RUNS: usize = 128;

/// Frames whose pages follow each other in the store.
#[derive(Debug)]
struct Run {
    frames: Range<u32>,
    slot: u32,
    keys: Vec<Fingerprint>,
}

/// Pages of the store that an image or a stage shows, which stay where they are as long as this
/// lives.
#[derive(Debug)]
pub(crate) struct Pins {
    store: Arc<ContentStore>,
    /// In the order of their frames.
    runs: Vec<Run>,
}

impl Pins {
    /// Puts pages of an image into the store, in the order of their frames, and pins those that are
    /// shown in the [`RUNS`] longest runs. `read` copies the bytes of a frame.
    pub(crate) fn put(
        store: &Arc<ContentStore>,
        pages: impl Iterator<Item = (u32, Fingerprint)>,
        read: impl Fn(u32, &mut Page) -> Result<(), KvmError>,
    ) -> Result<Self, KvmError> {
        // From here on what is pinned is unpinned, whatever fails.
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

    /// Pins pages that are in the store now, in the order of their frames, and of them those that
    /// are shown in the [`RUNS`] longest runs.
    ///
    /// There are no bytes here to compare them with: a page is the frame's because it has the
    /// frame's fingerprint, which is 128 bits of a hash under the tenant's key, so that nobody
    /// without the key can look for two pages with one. With the domain at hand the bytes are
    /// hashed once more, and a page that has others than its fingerprint says is left out.
    pub(crate) fn found(
        store: &Arc<ContentStore>,
        wanted: impl Iterator<Item = (u32, Fingerprint)>,
        domain: Option<&Domain>,
    ) -> Result<Self, KvmError> {
        let mut pins = Self { store: Arc::clone(store), runs: Vec::new() };
        for (frame, key) in wanted {
            if let Some(slot) = store.pin_shown(key) {
                pins.add(frame, key, slot);
            }
        }
        pins.keep_longest();
        if let Some(domain) = domain {
            pins.keep_true(domain)?;
        }
        Ok(pins)
    }

    /// Adds a page that is pinned, of a later frame than all others.
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
        let surplus = self.runs.split_off(RUNS.min(self.runs.len()));
        self.store.let_go(surplus.iter().flat_map(|run| &run.keys));
        self.runs.sort_by_key(|run| run.frames.start);
    }

    /// Ends each run before the first page that does not have the bytes of its fingerprint.
    fn keep_true(&mut self, domain: &Domain) -> Result<(), KvmError> {
        let mut page = [0; FRAME_BYTES];
        for run in &mut self.runs {
            let mut good = 0;
            for (slot, key) in (run.slot..).zip(&run.keys) {
                // Nobody writes to it: it is pinned.
                self.store.file.read(slot, &mut page)?;
                if domain.fingerprint(&page) != *key {
                    break;
                }
                good += 1;
            }
            run.frames.end = run.frames.start + good;
            self.store.let_go(run.keys.split_off(good as usize).iter());
        }
        self.runs.retain(|run| !run.keys.is_empty());
        Ok(())
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

    /// Copies bytes out of frames that follow each other in one of the runs, from an offset in
    /// frame-index order on.
    pub(crate) fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), KvmError> {
        let frame = frames_of(&(offset..offset)).start;
        let run = self.run(frame);
        let run = run.ok_or_else(|| KvmError::State(format!("frame {frame} is not shared")))?;
        let start = bytes_of(&run.frames).start;
        self.store.file.read_from(run.slot, offset - start, buf)
    }

    /// Where frames are that follow each other in one of the runs.
    pub(crate) fn part(&self, frames: &Range<u32>) -> Overlay<'_> {
        let slot =
            self.run(frames.start).map_or(0, |run| run.slot + (frames.start - run.frames.start));
        Overlay {
            offset: self.store.file.offset(slot),
            range: bytes_of(frames),
            file: self.store.file.as_fd(),
            stands: Immutability::Pinned,
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.store.let_go(self.runs.iter().flat_map(|run| &run.keys));
    }
}
