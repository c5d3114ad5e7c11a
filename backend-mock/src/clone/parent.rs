//! A parent whose memory keeps changing after the freeze.

use super::pattern::Pattern;
use crate::Rng;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex, Gpa};
use kaleidoscope_core::memory::{
    GuestMemory, MemoryError, MemoryLayout, Page, SnapshotId, ZERO_PAGE,
};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Number of locks that the frames share.
const SHARDS: usize = 64;

/// A parent's memory, which can be written and frozen at any time. Clones of it are handles to the
/// same parent.
///
/// It starts with the pages of a [`Pattern`], generation 0, or with another memory, and stores only
/// pages written since. [`MockParent::freeze`] takes constant time; a page is copied on its first
/// write after a freeze.
#[derive(Clone)]
pub struct MockParent {
    shared: Arc<Shared>,
}

struct Shared {
    layout: MemoryLayout,
    initial: InitialContent,
    /// Number of freezes so far. Locked exclusively to freeze, shared to write.
    epoch: RwLock<u64>,
    shards: Vec<Mutex<Shard>>,
    copied: AtomicU64,
}

/// Versions of frames, oldest first.
type Shard = HashMap<FrameIndex, Vec<Version>>;

/// The bytes of a frame from this epoch on.
struct Version {
    epoch: u64,
    page: Arc<Page>,
}

enum InitialContent {
    Pattern(Pattern),
    Memory(Arc<dyn GuestMemory>),
}

/// A parent's memory at the instant of a freeze, which never changes. Clones of it are handles to
/// the same snapshot.
#[derive(Clone)]
pub struct Snapshot {
    shared: Arc<Shared>,
    epoch: u64,
    id: SnapshotId,
}

/// Threads that write to a parent until this is dropped.
#[must_use = "the threads end when this is dropped"]
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    written: Arc<AtomicU64>,
}

impl MockParent {
    /// A parent that starts with the pages of a pattern, generation 0.
    #[must_use]
    pub fn new(layout: MemoryLayout, pattern: Pattern) -> Self {
        Self::initial(layout, InitialContent::Pattern(pattern))
    }

    /// A parent that starts with the bytes of a snapshot.
    #[must_use]
    pub fn of(memory: Arc<dyn GuestMemory>) -> Self {
        Self::initial(memory.layout().clone(), InitialContent::Memory(memory))
    }

    fn initial(layout: MemoryLayout, initial: InitialContent) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (epoch, copied) = (RwLock::new(0), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { layout, initial, epoch, shards, copied }) }
    }

    /// The layout of its RAM.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.shared.layout
    }

    /// Freezes the memory. The parent can be written to afterwards.
    #[must_use]
    pub fn freeze(&self) -> Snapshot {
        let mut epoch = self.shared.epoch.write();
        let shared = Arc::clone(&self.shared);
        let snapshot = Snapshot { shared, epoch: *epoch, id: SnapshotId::unique() };
        *epoch += 1;
        snapshot
    }

    /// Writes to a frame. Bytes past the end of the frame are ignored.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no such frame, or its initial contents cannot be read.
    pub fn write(&self, frame: FrameIndex, offset: usize, bytes: &[u8]) -> Result<(), MemoryError> {
        let shared = &self.shared;
        let now = shared.epoch.read();
        let mut shard = shared.shard(frame).lock();
        let before = shard.get(&frame).and_then(|versions| versions.last());
        let page = match before {
            Some(version) => Arc::clone(&version.page),
            None => Arc::new(shared.initial_page(frame)?),
        };
        let versions = shard.entry(frame).or_default();
        if versions.last().is_none_or(|version| version.epoch != *now) {
            shared.copied.fetch_add(1, Ordering::Relaxed);
            versions.push(Version { epoch: *now, page });
        } else {
            drop(page);
        }
        if let Some(version) = versions.last_mut() {
            let page = Arc::make_mut(&mut version.page);
            let target = page.get_mut(offset..).unwrap_or_default();
            target.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    /// Number of pages copied for writing.
    #[must_use]
    pub fn copied_pages(&self) -> u64 {
        self.shared.copied.load(Ordering::Relaxed)
    }

    /// Starts threads that write pages of image `image` with increasing generations, and zeros, all
    /// over the memory, until the returned value is dropped.
    ///
    /// # Errors
    /// [`io::Error`] when a thread cannot be started.
    pub fn keep_writing(&self, threads: usize, image: u64) -> io::Result<Writers> {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut writers = Writers { stop, threads: Vec::new(), written };
        for number in 0..threads {
            let (parent, stop) = (self.clone(), Arc::clone(&writers.stop));
            let written = Arc::clone(&writers.written);
            let mut rng = Rng::new(image ^ number as u64);
            let work = move || {
                let mut generation = 1u16;
                while !stop.load(Ordering::Relaxed) {
                    // A write fails only if the initial contents cannot be read; there is nothing
                    // to do then.
                    let _ = parent.write_at_random(&mut rng, image, generation);
                    generation = generation.checked_add(1).unwrap_or(1);
                    written.fetch_add(1, Ordering::Relaxed);
                    if rng.one_in(64) {
                        // Leave processor time to the clones.
                        thread::sleep(Duration::from_micros(200));
                    }
                }
            };
            writers.threads.push(thread::Builder::new().name("parent".into()).spawn(work)?);
        }
        Ok(writers)
    }

    fn write_at_random(
        &self,
        rng: &mut Rng,
        image: u64,
        generation: u16,
    ) -> Result<(), MemoryError> {
        let frame = rng.below(u64::from(self.layout().frames()));
        let frame = FrameIndex(u32::try_from(frame).unwrap_or(0));
        match rng.below(4) {
            0 => self.write(frame, 0, &ZERO_PAGE),
            1 => self.write(frame, rng.index(FRAME_BYTES), &rng.next_u64().to_le_bytes()),
            _ => self.write(frame, 0, &super::pattern::page(image, frame, generation)),
        }
    }
}

impl Shared {
    fn shard(&self, frame: FrameIndex) -> &Mutex<Shard> {
        // The index is below SHARDS, the number of shards.
        &self.shards[frame.as_usize() % SHARDS]
    }

    fn initial_page(&self, frame: FrameIndex) -> Result<Page, MemoryError> {
        let outside = MemoryError::NotRam { gpa: Gpa(u64::MAX), len: FRAME_BYTES };
        let gfn = self.layout.gfn_of(frame).ok_or(outside)?;
        match &self.initial {
            InitialContent::Pattern(pattern) => Ok(pattern.page(frame, 0)),
            InitialContent::Memory(memory) => {
                let mut page = ZERO_PAGE;
                memory.read(gfn.gpa(), &mut page).map(|()| page)
            }
        }
    }
}

impl Snapshot {
    /// The bytes of a frame at the instant of the freeze.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no such frame, or its initial contents cannot be read.
    pub fn page(&self, frame: FrameIndex) -> Result<Page, MemoryError> {
        let shard = self.shared.shard(frame).lock();
        let versions = shard.get(&frame).into_iter().flatten().rev();
        let page = versions.into_iter().find(|v| v.epoch <= self.epoch).map(|v| *v.page);
        drop(shard);
        match page {
            Some(page) => Ok(page),
            None => self.shared.initial_page(frame),
        }
    }
}

impl GuestMemory for Snapshot {
    fn layout(&self) -> &MemoryLayout {
        &self.shared.layout
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let error = MemoryError::NotRam { gpa, len: buf.len() };
        let (region, left) = self.layout().span_at(gpa).ok_or(error)?;
        if buf.len() as u64 > left {
            return Err(MemoryError::NotRam { gpa, len: buf.len() });
        }
        let _ = region;
        let (mut gpa, mut rest) = (gpa, buf);
        while !rest.is_empty() {
            let at = gpa.offset_in_frame();
            let step = rest.len().min(FRAME_BYTES - at);
            let frame = self.layout().index_of(gpa.gfn());
            let frame = frame.ok_or(MemoryError::NotRam { gpa, len: rest.len() })?;
            let page = self.page(frame)?;
            let (now, later) = rest.split_at_mut(step);
            now.iter_mut().zip(page.iter().skip(at)).for_each(|(to, from)| *to = *from);
            gpa = Gpa(gpa.0.saturating_add(step as u64));
            rest = later;
        }
        Ok(())
    }

    fn snapshot_id(&self) -> Option<SnapshotId> {
        Some(self.id)
    }
}

impl Writers {
    /// Number of writes so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of a writer does not matter here.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for MockParent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let frames = self.layout().frames();
        f.debug_struct("MockParent").field("frames", &frames).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("freeze", &self.epoch).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Writers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writers").field("written", &self.written()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clone::pattern;

    fn parent() -> (MockParent, Pattern) {
        let pattern = Pattern::new(3).with(20, 20);
        (MockParent::new(MemoryLayout::contiguous(64 << 12).unwrap(), pattern), pattern)
    }

    #[test]
    fn frozen_means_frozen() {
        let (parent, pattern) = parent();
        let first = parent.freeze();
        let (a, b) = (FrameIndex(5), FrameIndex(6));
        parent.write(a, 100, &[1, 2, 3]).unwrap();
        let second = parent.freeze();
        parent.write(a, 0, &pattern::page(4, a, 1)).unwrap();
        parent.write(b, 4094, &[9, 9, 9]).unwrap();
        let third = parent.freeze();
        let mut after = pattern.page(a, 0);
        after[100..103].copy_from_slice(&[1, 2, 3]);
        assert_eq!(first.page(a).unwrap(), pattern.page(a, 0));
        assert_eq!(second.page(a).unwrap(), after);
        assert_eq!(third.page(a).unwrap(), pattern::page(4, a, 1));
        assert_eq!(second.page(b).unwrap(), pattern.page(b, 0));
        assert_eq!(third.page(b).unwrap()[4094..], [9, 9]);
        assert!(first.page(FrameIndex(64)).is_err());
        assert!(parent.write(FrameIndex(64), 0, &[1]).is_err());
        let grandchild = MockParent::of(Arc::new(second));
        grandchild.write(a, 0, &[7]).unwrap();
        let page = grandchild.freeze().page(a).unwrap();
        assert_eq!((page[0], &page[1..]), (7, &after[1..]));
    }

    #[test]
    fn writers_change_nothing_that_is_frozen() {
        let (parent, pattern) = parent();
        let initial = parent.freeze();
        let writers = parent.keep_writing(2, 99).unwrap();
        while writers.written() < 1000 {
            thread::yield_now();
        }
        let later = parent.freeze();
        let frames = || (0..64).map(FrameIndex);
        let before: Vec<_> = frames().map(|f| later.page(f).unwrap()).collect();
        let written = writers.written();
        while writers.written() < written + 1000 {
            thread::yield_now();
        }
        let mut all = vec![0; 64 << 12];
        initial.read(Gpa(0), &mut all).unwrap();
        for (frame, page) in frames().zip(all.chunks(FRAME_BYTES)) {
            pattern.verify(frame, 0, 0, page).unwrap();
        }
        assert!(frames().zip(&before).all(|(f, page)| later.page(f).unwrap() == *page));
        assert!(frames().any(|f| later.page(f).unwrap() != initial.page(f).unwrap()));
        drop(writers);
        assert!(parent.copied_pages() <= 64 * 2);
    }

    #[test]
    fn reads_span_frames_and_end_with_ram() {
        let (parent, pattern) = parent();
        let snapshot = parent.freeze();
        let mut buf = [0; 6000];
        snapshot.read(Gpa(0x1ff0), &mut buf).unwrap();
        assert_eq!(buf[..16], pattern.page(FrameIndex(1), 0)[0xff0..]);
        assert_eq!(buf[16..4112], pattern.page(FrameIndex(2), 0));
        assert!(snapshot.read(Gpa((64 << 12) - 5999), &mut buf).is_err());
    }
}
