//! A clone's memory as the engine's ports see it.

use super::Stage;
use crate::error::{Asked, KvmError};
use crate::sys::{Mapping, Message, Userfault};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::{Event, FaultQueue, PlaceError, Placed, Placer};
use kaleidoscope_core::memory::Page;
use kaleidoscope_core::prefetch::Access;
use linux_raw_sys::general::{
    UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_MISSING_SHMEM, UFFDIO_REGISTER_MODE_MISSING,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Frames that one userfaultfd watches at least: below that, sharing one costs less than having several.
const SHARD: usize = 1 << 13;

/// A clone's memory that is filled as it is touched.
///
/// Its parts are watched by userfaultfds of their own, so that faults of several vCPUs do not queue for one lock.
#[derive(Debug)]
pub(crate) struct LazyPages {
    mapping: Arc<Mapping>,
    shards: Vec<Userfault>,
    /// Frames of a shard; the last one has the rest.
    per_shard: usize,
    frames: usize,
    stage: Option<Arc<Stage>>,
    /// The shard that is looked at first.
    turn: AtomicUsize,
    revoked: AtomicBool,
}

impl LazyPages {
    /// Memory of so many frames, in up to `shards` parts; with a stage, pages are kept there and shared.
    pub(crate) fn new(
        frames: u32,
        shards: usize,
        stage: Option<Arc<Stage>>,
    ) -> Result<Self, KvmError> {
        let frames = frames as usize;
        let mapping = Arc::new(match &stage {
            Some(stage) => stage.map()?,
            None => Mapping::anonymous(frames * FRAME_BYTES).asked("mapping a clone's memory")?,
        });
        let per_shard = frames.div_ceil(shards.clamp(1, frames.div_ceil(SHARD).max(1)));
        let features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM;
        let watch = |start: usize| {
            let end = (start + per_shard).min(frames);
            let userfault = Userfault::new(Arc::clone(&mapping), features.into())?;
            let bytes = start * FRAME_BYTES..end * FRAME_BYTES;
            userfault.register(bytes, UFFDIO_REGISTER_MODE_MISSING)?;
            Ok::<_, Errno>(userfault)
        };
        let shards: Result<_, _> = (0..frames).step_by(per_shard.max(1)).map(watch).collect();
        Ok(Self {
            shards: shards.asked(
                "watching a clone's memory (userfaultfd: as root, with the right to open /dev/userfaultfd, or with vm.unprivileged_userfaultfd = 1)",
            )?,
            mapping,
            per_shard,
            frames,
            stage,
            turn: AtomicUsize::new(0),
            revoked: AtomicBool::new(false),
        })
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    fn shard(&self, frame: FrameIndex) -> Result<(&Userfault, Range<usize>), PlaceError> {
        let shard = self.shards.get(frame.as_usize() / self.per_shard);
        let start = frame.as_usize() * FRAME_BYTES;
        shard
            .map(|shard| (shard, start..start + FRAME_BYTES))
            .ok_or_else(|| PlaceError::new(format!("the clone has no frame {frame}")))
    }

    /// Whether a page is on the stage: zeros over it would hide it from this clone.
    fn is_staged(&self, frame: FrameIndex) -> bool {
        self.stage.as_ref().is_some_and(|stage| stage.has(frame))
    }

    /// What the system's answer means.
    fn placed(
        &self,
        frame: FrameIndex,
        result: Result<(), (usize, Errno)>,
    ) -> Result<Placed, PlaceError> {
        match result {
            Ok(()) => Ok(Placed::Placed),
            Err((_, Errno::EXIST)) => Ok(Placed::AlreadyThere),
            // Memory is being given back, and the event that says so was not read yet.
            Err((_, Errno::AGAIN)) => Ok(Placed::Again),
            Err((_, error)) => {
                Err(PlaceError::caused_by(format!("frame {frame} cannot be filled"), error))
            }
        }
    }

    /// Takes the memory from the guest for good: whatever touches it from here on is an error, never a page that is not the
    /// parent's. Whoever waits for a page gets that error.
    pub(crate) fn revoke(&self) {
        if self.revoked.swap(true, Ordering::AcqRel) {
            return;
        }
        // Cannot fail but for lack of the kernel's own memory; then whoever waits must go on waiting.
        if self.mapping.revoke().is_ok() {
            for (n, shard) in self.shards.iter().enumerate() {
                let start = n * self.per_shard;
                let end = (start + self.per_shard).min(self.frames);
                let _ = shard.wake(start * FRAME_BYTES..end * FRAME_BYTES);
            }
        }
    }
}

impl Placer for LazyPages {
    fn place(&self, frame: FrameIndex, page: &Page) -> Result<Placed, PlaceError> {
        let (shard, range) = self.shard(frame)?;
        let Some(stage) = &self.stage else {
            return self.placed(frame, shard.copy(range.start, page));
        };
        let failed =
            |error| PlaceError::caused_by(format!("frame {frame} cannot be filled"), error);
        let is_new = stage.put(frame, page).map_err(failed)?;
        shard
            .wake(range)
            .map_err(|error| failed(KvmError::Refused { what: "waking a vCPU", source: error }))?;
        Ok(if is_new { Placed::Placed } else { Placed::AlreadyThere })
    }

    fn zero(&self, frame: FrameIndex) -> Result<Placed, PlaceError> {
        let (shard, range) = self.shard(frame)?;
        if self.is_staged(frame) {
            return Ok(Placed::AlreadyThere);
        }
        self.placed(frame, shard.zero(range))
    }

    fn zero_run(&self, frames: Range<u32>) -> Result<u32, PlaceError> {
        let mut done = frames.start;
        while done < frames.end {
            let (shard, range) = self.shard(FrameIndex(done))?;
            let in_shard = self.per_shard - done as usize % self.per_shard;
            let most = (frames.end - done).min(u32::try_from(in_shard).unwrap_or(u32::MAX));
            let count = (0..most).take_while(|n| !self.is_staged(FrameIndex(done + n))).count();
            let count = u32::try_from(count).unwrap_or(0);
            if count == 0 {
                done += 1;
                continue;
            }
            let end = range.start + count as usize * FRAME_BYTES;
            match shard.zero(range.start..end) {
                Ok(()) => done += count,
                Err((bytes, error)) => {
                    done += u32::try_from(bytes / FRAME_BYTES).unwrap_or(0);
                    match error {
                        Errno::EXIST => done += 1,
                        // What was done is told when not all could be, as if it had been interrupted.
                        Errno::AGAIN if bytes > 0 => {}
                        Errno::AGAIN => break,
                        error => {
                            let what = format!("frame {done} cannot be filled");
                            return Err(PlaceError::caused_by(what, error));
                        }
                    }
                }
            }
        }
        Ok(done - frames.start)
    }

    fn wake(&self, frame: FrameIndex) -> Result<(), PlaceError> {
        let (shard, range) = self.shard(frame)?;
        shard.wake(range).map_err(|error| {
            PlaceError::caused_by(format!("who waits for frame {frame} cannot be woken"), error)
        })
    }
}

impl FaultQueue for LazyPages {
    fn wait(&self, wait: Duration) -> Result<(), PlaceError> {
        if self.revoked.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut fds: Vec<_> =
            self.shards.iter().map(|shard| PollFd::new(shard, PollFlags::IN)).collect();
        let timeout = Timespec::try_from(wait).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(PlaceError::caused_by("waiting for faults", error)),
        }
    }

    fn read(&self) -> Result<Option<Event>, PlaceError> {
        if self.revoked.load(Ordering::Acquire) {
            return Ok(Some(Event::Closed));
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for n in 0..self.shards.len() {
            let Some(shard) = self.shards.get(first.wrapping_add(n) % self.shards.len()) else {
                continue;
            };
            let message =
                shard.read().map_err(|error| PlaceError::caused_by("reading faults", error))?;
            let frame = |offset: usize| u32::try_from(offset / FRAME_BYTES).unwrap_or(u32::MAX);
            match message {
                None => {}
                Some(Message::Fault { offset, is_write }) => {
                    let access = if is_write { Access::Write } else { Access::Read };
                    return Ok(Some(Event::Fault { frame: FrameIndex(frame(offset)), access }));
                }
                Some(Message::Removed(range)) => {
                    return Ok(Some(Event::Removed(frame(range.start)..frame(range.end))));
                }
            }
        }
        Ok(None)
    }
}
