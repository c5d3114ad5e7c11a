//! A clone's memory as the engine's ports see it.

use super::SharedPageCache;
use super::blocks::Blocks;
use super::shared_cache::Put;
use crate::error::{Asked, KvmError};
use crate::memory::{PageSize, SnapshotMemory, bytes_of, frames_of, runs};
use crate::sys::{Mapping, Message, Userfault, own_pages, zero_pages};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::{Event, FaultQueue, InstallError, Installed, PageInstaller};
use kaleidoscope_core::memory::Page;
use kaleidoscope_core::prefetch::Access;
use linux_raw_sys::general::{
    UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_EXACT_ADDRESS, UFFD_FEATURE_MISSING_HUGETLBFS,
    UFFD_FEATURE_MISSING_SHMEM, UFFDIO_REGISTER_MODE_MISSING,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Frames that one userfaultfd watches at least: below that, sharing one costs less than having
/// several.
const SHARD: usize = 1 << 13;

/// A mapping, and which frames it shows, from its first byte on.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) frames: Range<u32>,
}

/// Frames that one userfaultfd watches.
#[derive(Debug)]
struct Shard {
    userfault: Userfault,
    mapping: Arc<Mapping>,
    frames: Range<u32>,
    /// Where the first of them is in the mapping.
    base: usize,
    pages: PageSize,
}

/// A clone's memory that is filled as it is touched.
///
/// Its shards are watched by userfaultfds of their own, so that faults of several vCPUs do not
/// queue for one lock.
#[derive(Debug)]
pub(crate) struct OnDemandMemory {
    /// By frame.
    shards: Vec<Shard>,
    cache: Option<Arc<SharedPageCache>>,
    /// Huge pages on their way, where the memory is of those.
    blocks: Option<Blocks>,
    /// The shard that is looked at first.
    turn: AtomicUsize,
    revoked: AtomicBool,
    /// Nobody watches the memory any more: every frame is there, or is zeros.
    released: AtomicBool,
}

impl Shard {
    fn new(part: &Part, frames: Range<u32>, pages: PageSize) -> Result<Self, Errno> {
        let features = UFFD_FEATURE_EVENT_REMOVE
            | match pages {
                PageSize::Small => UFFD_FEATURE_MISSING_SHMEM,
                // Which of its frames was touched is for the policy to know.
                PageSize::Huge => UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_EXACT_ADDRESS,
            };
        let userfault = Userfault::new(Arc::clone(&part.mapping), features.into())?;
        let base = (frames.start - part.frames.start) as usize * FRAME_BYTES;
        let shard = Self { userfault, mapping: Arc::clone(&part.mapping), frames, base, pages };
        shard.userfault.register(shard.all_bytes(), UFFDIO_REGISTER_MODE_MISSING)?;
        Ok(shard)
    }

    /// Where frames of the shard are in its mapping.
    fn bytes(&self, frames: Range<u32>) -> Range<usize> {
        let at =
            |frame: u32| self.base + frame.saturating_sub(self.frames.start) as usize * FRAME_BYTES;
        at(frames.start)..at(frames.end)
    }

    /// Where the shard is in its mapping, to the end of its last page.
    fn all_bytes(&self) -> Range<usize> {
        let bytes = self.bytes(self.frames.clone());
        bytes.start..bytes.start + self.pages.round_up(bytes.len())
    }

    /// Fills a page that begins with a frame.
    fn fill(&self, start: u32, bytes: &[u8]) -> Result<(), Errno> {
        let at = self.bytes(start..start).start;
        self.userfault.copy(at, bytes).map_err(|(_, error)| error)
    }

    /// The frame at an offset in the mapping.
    fn frame(&self, offset: usize) -> u32 {
        let frame = offset.saturating_sub(self.base) / FRAME_BYTES;
        u32::try_from(frame).map_or(u32::MAX, |frame| self.frames.start.saturating_add(frame))
    }
}

impl OnDemandMemory {
    /// Memory that consists of these parts, in the order of their frames and without gaps between
    /// them, each watched in up to `shards` pieces; with a cache, which the mapping then shows,
    /// pages are kept there and shared. Huge pages are one part, without a cache.
    pub(crate) fn new(
        parts: &[Part],
        shards: usize,
        cache: Option<Arc<SharedPageCache>>,
        pages: PageSize,
    ) -> Result<Self, KvmError> {
        if pages == PageSize::Huge && (parts.len() != 1 || cache.is_some()) {
            let what = "memory of huge pages is a clone's own, and in one piece";
            return Err(KvmError::State(what.into()));
        }
        let mut all = Vec::new();
        for part in parts {
            let frames = part.frames.len();
            let each = frames.div_ceil(shards.clamp(1, frames.div_ceil(SHARD).max(1)));
            let each = each.max(1).next_multiple_of(pages.frames() as usize);
            for start in part.frames.clone().step_by(each) {
                let each = u32::try_from(each).unwrap_or(u32::MAX);
                let shard =
                    Shard::new(part, start..start.saturating_add(each).min(part.frames.end), pages);
                all.push(shard.asked(
                    "watching a clone's memory (userfaultfd: as root, with the right to open /dev/userfaultfd, or with vm.unprivileged_userfaultfd = 1)",
                )?);
            }
        }
        let frames = parts.last().map_or(0, |part| part.frames.end);
        Ok(Self {
            shards: all,
            cache,
            blocks: (pages == PageSize::Huge).then(|| Blocks::new(frames)),
            turn: AtomicUsize::new(0),
            revoked: AtomicBool::new(false),
            released: AtomicBool::new(false),
        })
    }

    /// The shard of a frame, and where the frame is in its mapping.
    fn shard(&self, frame: FrameIndex) -> Result<(&Shard, Range<usize>), InstallError> {
        let at = self.shards.partition_point(|shard| shard.frames.end <= frame.0);
        let shard = self.shards.get(at).filter(|shard| shard.frames.contains(&frame.0));
        shard
            .map(|shard| (shard, shard.bytes(frame.0..frame.0 + 1)))
            .ok_or_else(|| InstallError::new(format!("the clone has no frame {frame}")))
    }

    /// Makes what the clone has from a cache an image, of which its memory is then a private
    /// mapping. Every frame of it is there.
    fn freeze_cache(
        &self,
        cache: &SharedPageCache,
    ) -> Result<(Arc<SnapshotMemory>, &Mapping), KvmError> {
        let mapping = match self.shards.as_slice() {
            [first, ..] if first.mapping.len() == self.bytes() => &*first.mapping,
            _ => return Err(KvmError::NotWhole("its memory is not one mapping of its cache")),
        };
        let image = cache.freeze(|| {
            let looking = "looking for what a clone has (Linux 6.7 or later)";
            let own = own_pages(mapping).asked(looking)?;
            let zeros = zero_pages(mapping).asked(looking)?;
            Ok(runs::normal(own.iter().chain(&zeros).map(frames_of).collect()))
        });
        Ok((image?, mapping))
    }

    /// Whether pages of it are shared with siblings.
    pub(crate) fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// Bytes of all frames.
    fn bytes(&self) -> usize {
        self.shards.last().map_or(0, |shard| shard.frames.end as usize * FRAME_BYTES)
    }

    /// Whether a page is on the cache: zeros over it would hide it from this clone.
    fn is_staged(&self, frame: FrameIndex) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.has(frame))
    }

    /// What the system's answer means.
    fn placed(
        &self,
        frame: FrameIndex,
        result: Result<(), (usize, Errno)>,
    ) -> Result<Installed, InstallError> {
        match result {
            Ok(()) => Ok(Installed::Installed),
            Err((_, Errno::EXIST)) => Ok(Installed::AlreadyPresent),
            // Memory is being given back, and the event that says so was not read yet.
            Err((_, Errno::AGAIN)) => Ok(Installed::TryAgain),
            // Whoever waited for zeros has found them.
            Err((_, Errno::NOENT)) if self.released.load(Ordering::Acquire) => {
                Ok(Installed::AlreadyPresent)
            }
            Err((_, error)) => {
                Err(InstallError::caused_by(format!("frame {frame} cannot be filled"), error))
            }
        }
    }

    /// A frame of a huge page came, zeros without a page.
    fn collect(
        &self,
        blocks: &Blocks,
        frame: FrameIndex,
        page: Option<&Page>,
    ) -> Result<Installed, InstallError> {
        let (shard, _) = self.shard(frame)?;
        match blocks.put(frame, page, |start, bytes| shard.fill(start, bytes)) {
            Ok(placed) => Ok(placed),
            Err(error) => self.placed(frame, Err((0, error))),
        }
    }

    /// Ceases to watch the memory, of which every frame is there or is zeros: who waits for zeros
    /// finds them. The image that it is a private mapping of from here on, where it was on a
    /// cache.
    pub(crate) fn release(&self) -> Result<Option<Arc<SnapshotMemory>>, KvmError> {
        let Some(cache) = &self.cache else { return self.unwatch().map(|()| None) };
        let (image, mapping) = self.freeze_cache(cache)?;
        self.unwatch()?;
        // What was filled with zeros just before a sibling put its page here is zeros for this
        // clone, and not for its image.
        for run in zero_pages(mapping).asked("looking for what a clone has")? {
            for frame in frames_of(&run).filter(|frame| cache.has(FrameIndex(*frame))) {
                let own = mapping.populate(bytes_of(&(frame..frame + 1)));
                own.asked("giving a clone memory of its own")?;
            }
        }
        Ok(Some(image))
    }

    fn unwatch(&self) -> Result<(), KvmError> {
        if let Some(blocks) = &self.blocks {
            // Huge pages of which the free frames were not touched.
            let completed = blocks.complete(|start, bytes| {
                let (shard, _) = self.shard(FrameIndex(start)).map_err(|_| Errno::INVAL)?;
                shard.fill(start, bytes)
            });
            completed.asked("completing a clone's huge pages")?;
        }
        self.released.store(true, Ordering::Release);
        self.shards.iter().try_for_each(|shard| {
            let done = shard.userfault.unregister(shard.all_bytes());
            done.asked("ceasing to watch a clone's memory")
        })
    }

    /// Takes the memory from the guest for good: whatever touches it from here on is an error,
    /// never a page that is not the parent's. Whoever waits for a page gets that error.
    pub(crate) fn revoke(&self) {
        if self.revoked.swap(true, Ordering::AcqRel) {
            return;
        }
        for shard in &self.shards {
            // Memory of another owner cannot be taken; nor can any for lack of the kernel's own.
            // Whoever waits there goes on waiting.
            if shard.mapping.revoke().is_ok() {
                let _ = shard.userfault.wake(shard.all_bytes());
            }
        }
    }
}

impl PageInstaller for OnDemandMemory {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        if let Some(blocks) = &self.blocks {
            return self.collect(blocks, frame, Some(page));
        }
        let (shard, range) = self.shard(frame)?;
        let Some(cache) = &self.cache else {
            return self.placed(frame, shard.userfault.copy(range.start, page));
        };
        let failed =
            |error| InstallError::caused_by(format!("frame {frame} cannot be filled"), error);
        let put = cache.put(frame, page).map_err(failed)?;
        match put {
            Put::New | Put::Known => {}
            Put::Again => return Ok(Installed::TryAgain),
            Put::Sealed => return self.placed(frame, shard.userfault.zero(range)),
        }
        shard
            .userfault
            .wake(range)
            .map_err(|error| failed(KvmError::Refused { what: "waking a vCPU", source: error }))?;
        Ok(if put == Put::New { Installed::Installed } else { Installed::AlreadyPresent })
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        if let Some(blocks) = &self.blocks {
            return self.collect(blocks, frame, None);
        }
        let (shard, range) = self.shard(frame)?;
        if self.is_staged(frame) {
            return Ok(Installed::AlreadyPresent);
        }
        self.placed(frame, shard.userfault.zero(range))
    }

    fn zero_run(&self, frames: Range<u32>) -> Result<u32, InstallError> {
        let mut done = frames.start;
        if let Some(blocks) = &self.blocks {
            while done < frames.end
                && self.collect(blocks, FrameIndex(done), None)? != Installed::TryAgain
            {
                done += 1;
            }
            return Ok(done - frames.start);
        }
        while done < frames.end {
            let (shard, _) = self.shard(FrameIndex(done))?;
            let most = frames.end.min(shard.frames.end) - done;
            let count = (0..most).take_while(|n| !self.is_staged(FrameIndex(done + n))).count();
            let count = u32::try_from(count).unwrap_or(0);
            if count == 0 {
                done += 1;
                continue;
            }
            match shard.userfault.zero(shard.bytes(done..done + count)) {
                Ok(()) => done += count,
                Err((bytes, error)) => {
                    done += u32::try_from(bytes / FRAME_BYTES).unwrap_or(0);
                    match error {
                        Errno::EXIST => done += 1,
                        // What was done is told when not all could be, as if it had been
                        // interrupted.
                        Errno::AGAIN if bytes > 0 => {}
                        Errno::AGAIN => break,
                        error => {
                            let what = format!("frame {done} cannot be filled");
                            return Err(InstallError::caused_by(what, error));
                        }
                    }
                }
            }
        }
        Ok(done - frames.start)
    }

    fn shown(&self) -> Vec<Range<u32>> {
        self.cache.as_ref().map_or_else(Vec::new, |cache| cache.shared())
    }

    fn wake(&self, frame: FrameIndex) -> Result<(), InstallError> {
        let (shard, range) = self.shard(frame)?;
        shard.userfault.wake(range).map_err(|error| {
            InstallError::caused_by(format!("who waits for frame {frame} cannot be woken"), error)
        })
    }
}

impl FaultQueue for OnDemandMemory {
    fn wait(&self, wait: Duration) -> Result<(), InstallError> {
        if self.revoked.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut fds: Vec<_> =
            self.shards.iter().map(|shard| PollFd::new(&shard.userfault, PollFlags::IN)).collect();
        let timeout = Timespec::try_from(wait).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(InstallError::caused_by("waiting for faults", error)),
        }
    }

    fn read(&self) -> Result<Option<Event>, InstallError> {
        if self.revoked.load(Ordering::Acquire) {
            return Ok(Some(Event::Closed));
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for n in 0..self.shards.len() {
            let Some(shard) = self.shards.get(first.wrapping_add(n) % self.shards.len()) else {
                continue;
            };
            let message = shard.userfault.read();
            match message.map_err(|error| InstallError::caused_by("reading faults", error))? {
                None => {}
                Some(Message::Fault { offset, is_write }) => {
                    let access = if is_write { Access::Write } else { Access::Read };
                    return Ok(Some(Event::Fault {
                        frame: FrameIndex(shard.frame(offset)),
                        access,
                    }));
                }
                Some(Message::Removed(range)) => {
                    // The last page may have room that no frame has.
                    let end = shard.frame(range.end).min(shard.frames.end);
                    let frames = shard.frame(range.start)..end;
                    if let Some(blocks) = &self.blocks {
                        blocks.give_back(frames.clone());
                    }
                    return Ok(Some(Event::Removed(frames)));
                }
            }
        }
        Ok(None)
    }
}
