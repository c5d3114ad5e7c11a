//! A clone's memory as userfaultfd presents it, without a hypervisor.

use super::frame_bits::{AHEAD, AWAITED, BUSY, DIRTY, FrameBits, GIVEN_BACK, PRESENT, TOUCHED};
use super::memory_statistics::{Counters, MemoryStatistics};
use super::queue::MockQueue;
use super::waits::{WaitOutcome, WaitQueue};
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, FrameIndex};
use kaleidoscope_core::clone::ports::{Event, Eviction, InstallError, Installed, PageInstaller};
use kaleidoscope_core::memory::{Page, ZERO_PAGE};
use kaleidoscope_core::prefetch::Access;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{FallocateFlags, MemfdFlags};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Number of locks that the frames share. A touch holds its lock shared; filling and emptying hold
/// it exclusively.
const LOCKS: u32 = 64;

/// A clone's memory: frames that are empty until they are filled, and vCPUs that wait when they
/// touch an empty one.
///
/// It behaves like memory under userfaultfd, including misuse:
/// * each vCPU that touches an empty frame reports its own fault, so a frame may be reported many
///   times, and also once more after it was filled;
/// * filling a frame that has bytes changes nothing and wakes no vCPU;
/// * a woken waiter retries, and reports another fault if the frame is still empty;
/// * while frames are being given back, no frame can be filled until the removal event was read.
///
/// It is backed by a sparse memory file, so that creation takes the same time at any size.
pub struct MockMemory {
    file: File,
    bits: FrameBits,
    locks: Vec<RwLock<()>>,
    /// Held shared while a frame is filled, and exclusively to announce a removal.
    changing: RwLock<()>,
    waits: WaitQueue,
    queue: MockQueue,
    timeout: Duration,
    closed: Mutex<Option<String>>,
    counters: Counters,
}

/// Why a vCPU cannot continue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VcpuError {
    /// A frame was not filled before the timeout.
    #[error("frame {frame} was not filled within {} s: a lost fault", waited.as_secs_f32())]
    Lost {
        /// The frame.
        frame: FrameIndex,
        /// How long the vCPU has waited.
        waited: Duration,
    },
    /// A removal event was not read before the timeout.
    #[error(
        "the removal of frames {frames:?} was not read within {} s: a lost event",
        waited.as_secs_f32()
    )]
    NotRead {
        /// The frames.
        frames: Range<u32>,
        /// How long the vCPU has waited.
        waited: Duration,
    },
    /// The memory was closed: the clone has ended, or was stopped.
    #[error("the clone was stopped: {reason}")]
    Closed {
        /// The reason that was passed to [`MockMemory::close`].
        reason: String,
    },
    /// The range is outside the memory, or outside the frame.
    #[error("{len} bytes at {offset:#x} of frame {frame} are not in this memory")]
    OutOfRange {
        /// The frame.
        frame: FrameIndex,
        /// Offset in the frame.
        offset: usize,
        /// Number of bytes.
        len: usize,
    },
    /// The memory file cannot be read, written or punched.
    #[error("frame {frame}: the memory file: {source}")]
    Io {
        /// The frame.
        frame: FrameIndex,
        /// The system's error.
        source: io::Error,
    },
}

/// Default time that a vCPU waits for a frame before it reports a lost fault.
const TIMEOUT: Duration = Duration::from_secs(30);

impl MockMemory {
    /// A memory of `frames` empty frames, in which a vCPU waits 30 seconds before it reports a lost
    /// fault.
    ///
    /// # Errors
    /// [`io::Error`] when the system has no memory for the file or for one byte per frame.
    pub fn new(frames: u32) -> io::Result<Self> {
        Self::with_patience(frames, TIMEOUT)
    }

    /// A memory of `frames` empty frames, in which a vCPU waits for `timeout` before it reports a
    /// lost fault.
    ///
    /// # Errors
    /// As for [`MockMemory::new`].
    pub fn with_patience(frames: u32, timeout: Duration) -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create("mock-clone", MemfdFlags::CLOEXEC)?);
        file.set_len(u64::from(frames) * FRAME_SIZE)?;
        let bits = FrameBits::new(frames);
        Ok(Self {
            file,
            bits,
            locks: (0..LOCKS).map(|_| RwLock::new(())).collect(),
            changing: RwLock::new(()),
            waits: WaitQueue::default(),
            queue: MockQueue::default(),
            timeout,
            closed: Mutex::new(None),
            counters: Counters::default(),
        })
    }

    /// The queue that reports this memory's faults.
    #[must_use]
    pub fn queue(&self) -> MockQueue {
        self.queue.clone()
    }

    pub(super) fn own_queue(&self) -> &MockQueue {
        &self.queue
    }

    /// Number of frames, including empty ones.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.bits.len()
    }

    /// Reads like a vCPU; blocks while the frame is empty.
    ///
    /// # Errors
    /// [`VcpuError`]; the contents of `buf` are then unspecified.
    pub fn read(&self, frame: FrameIndex, offset: usize, buf: &mut [u8]) -> Result<(), VcpuError> {
        let at = self.position(frame, offset, buf.len())?;
        self.touch(frame, Access::Read, || self.file.read_exact_at(buf, at))
    }

    /// Writes like a vCPU; blocks while the frame is empty.
    ///
    /// # Errors
    /// [`VcpuError`]; nothing was written then.
    pub fn write(&self, frame: FrameIndex, offset: usize, buf: &[u8]) -> Result<(), VcpuError> {
        let at = self.position(frame, offset, buf.len())?;
        self.touch(frame, Access::Write, || self.file.write_all_at(buf, at))
    }

    /// Gives frames back, like a balloon: queues a removal event, waits until it was read, and
    /// empties the frames.
    ///
    /// # Errors
    /// [`VcpuError`] when the frames are not all in this memory, the event is not read in time, or
    /// the memory is closed.
    pub fn give_back(&self, frames: Range<u32>) -> Result<(), VcpuError> {
        self.give_back_with(frames, || {})
    }

    /// Gives frames back, and calls `between` after the event was read and before the frames are
    /// emptied. Handlers tend to go wrong at this point: a page installed there is lost again.
    ///
    /// # Errors
    /// As for [`MockMemory::give_back`].
    pub fn give_back_with(
        &self,
        frames: Range<u32>,
        between: impl FnOnce(),
    ) -> Result<(), VcpuError> {
        let first = FrameIndex(frames.start);
        let len = frames.end.saturating_sub(frames.start);
        if frames.end > self.frames() || len == 0 {
            let len = (len as usize).saturating_mul(FRAME_BYTES);
            return Err(VcpuError::OutOfRange { frame: first, offset: 0, len });
        }
        let gate = self.changing.write();
        let ticket = self.queue.push_removed(frames.clone());
        drop(gate);
        if !self.queue.wait_removed(ticket, Instant::now() + self.timeout) {
            self.check_open()?;
            return Err(VcpuError::NotRead { frames, waited: self.timeout });
        }
        between();
        for frame in frames.clone().map(FrameIndex) {
            let _lock = self.lock(frame).map(RwLock::write);
            self.empty(frame, GIVEN_BACK).map_err(|source| VcpuError::Io { frame, source })?;
        }
        self.counters.given_back.fetch_add(u64::from(len), Relaxed);
        Ok(())
    }

    /// The bytes of a frame, `None` while it is empty. Does not count as a touch, and does not
    /// fault.
    ///
    /// # Errors
    /// [`VcpuError`] when there is no such frame, or it cannot be read.
    pub fn peek(&self, frame: FrameIndex) -> Result<Option<Page>, VcpuError> {
        let at = self.position(frame, 0, FRAME_BYTES)?;
        let _lock = self.lock(frame).map(RwLock::read);
        if !self.has(frame, PRESENT) {
            return Ok(None);
        }
        let mut page = ZERO_PAGE;
        let read = self.file.read_exact_at(&mut page, at);
        read.map(|()| Some(page)).map_err(|source| VcpuError::Io { frame, source })
    }

    /// Whether a frame is filled.
    #[must_use]
    pub fn is_present(&self, frame: FrameIndex) -> bool {
        self.has(frame, PRESENT)
    }

    /// Whether a vCPU has touched a frame since it was filled.
    #[must_use]
    pub fn is_touched(&self, frame: FrameIndex) -> bool {
        self.has(frame, TOUCHED)
    }

    /// Whether a vCPU has written to a frame since it was filled.
    #[must_use]
    pub fn is_dirty(&self, frame: FrameIndex) -> bool {
        self.has(frame, DIRTY)
    }

    /// The frames that vCPUs wait for now, one entry per vCPU.
    #[must_use]
    pub fn awaited(&self) -> Vec<FrameIndex> {
        self.waits.frames()
    }

    /// Ends the clone: waiting vCPUs and later touches get [`VcpuError::Closed`] with the first
    /// reason passed, readers of the queue get [`Event::Closed`].
    pub fn close(&self, reason: impl Into<String>) {
        self.closed.lock().get_or_insert_with(|| reason.into());
        self.waits.close();
        self.queue.close();
    }

    /// Statistics so far.
    #[must_use]
    pub fn statistics(&self) -> MemoryStatistics {
        self.counters.read()
    }

    /// Number of pages allocated for this memory; holes are not counted.
    ///
    /// # Errors
    /// [`io::Error`] when the system does not report it.
    pub fn resident_pages(&self) -> io::Result<u64> {
        // Blocks are 512 bytes on every file system: stat(2).
        Ok(self.file.metadata()?.blocks() * 512 / FRAME_SIZE)
    }

    fn has(&self, frame: FrameIndex, bit: u8) -> bool {
        self.bits.get(frame) & bit != 0
    }

    fn lock(&self, frame: FrameIndex) -> Option<&RwLock<()>> {
        self.locks.get((frame.0 % LOCKS) as usize)
    }

    fn check_open(&self) -> Result<(), VcpuError> {
        match self.closed.lock().as_ref() {
            Some(reason) => Err(VcpuError::Closed { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Position in the file of bytes of a frame.
    fn position(&self, frame: FrameIndex, offset: usize, len: usize) -> Result<u64, VcpuError> {
        let end = offset.checked_add(len).filter(|end| *end <= FRAME_BYTES);
        match end {
            Some(_) if frame.0 < self.frames() => {
                Ok(u64::from(frame.0) * FRAME_SIZE + offset as u64)
            }
            _ => Err(VcpuError::OutOfRange { frame, offset, len }),
        }
    }

    /// Performs an access once the frame is filled.
    fn touch(
        &self,
        frame: FrameIndex,
        access: Access,
        act: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), VcpuError> {
        let mut since = None;
        loop {
            self.check_open()?;
            let lock = self.lock(frame).map(RwLock::read);
            if self.has(frame, PRESENT) {
                let bits = if access == Access::Write { TOUCHED | DIRTY } else { TOUCHED };
                self.counters.touched(self.bits.set(frame, bits));
                if let Some(since) = since {
                    self.counters.stalled(Instant::elapsed(&since));
                }
                return act().map_err(|source| VcpuError::Io { frame, source });
            }
            drop(lock);
            let start = *since.get_or_insert_with(Instant::now);
            let wait = self.waits.wait(frame, start + self.timeout, || {
                self.bits.set(frame, AWAITED);
                self.queue.inject(Event::Fault { frame, access });
                self.counters.faults.fetch_add(1, Relaxed);
                // Filling sets the bit before it wakes.
                !self.has(frame, PRESENT)
            });
            match wait {
                WaitOutcome::Woken => {}
                WaitOutcome::TimedOut => {
                    return Err(VcpuError::Lost { frame, waited: start.elapsed() });
                }
                WaitOutcome::Closed => self.check_open()?,
            }
        }
    }

    /// Fills a frame with bytes, or with zeros (the file has a hole there while it is empty).
    fn fill(&self, frame: FrameIndex, page: Option<&Page>) -> Result<Installed, InstallError> {
        let at = self.checked(frame)?;
        let _gate = self.changing.read();
        if self.queue.is_changing() {
            self.counters.again.fetch_add(1, Relaxed);
            return Ok(Installed::TryAgain);
        }
        if self.bits.set(frame, BUSY) & BUSY != 0 {
            self.counters.collisions.fetch_add(1, Relaxed);
        }
        let lock = self.lock(frame).map(RwLock::write);
        let before = self.bits.get(frame);
        if before & PRESENT != 0 {
            self.bits.clear(frame, BUSY);
            self.counters.already_there.fetch_add(1, Relaxed);
            return Ok(Installed::AlreadyPresent);
        }
        if let Some(page) = page {
            self.file.write_all_at(page, at).map_err(|error| {
                self.bits.clear(frame, BUSY);
                InstallError::caused_by(format!("frame {frame}: the memory file"), error)
            })?;
            if before & GIVEN_BACK != 0 {
                self.counters.brought_back.fetch_add(1, Relaxed);
            }
        }
        let ahead = if before & AWAITED == 0 { AHEAD } else { 0 };
        self.bits.clear(frame, BUSY | TOUCHED | DIRTY);
        self.bits.set(frame, PRESENT | ahead);
        drop(lock);
        self.counters.filled(page.is_none(), ahead != 0);
        self.waits.wake(frame.0..frame.0 + 1);
        Ok(Installed::Installed)
    }

    /// Position of a frame in the file; an error if the frame is outside or the memory is closed.
    fn checked(&self, frame: FrameIndex) -> Result<u64, InstallError> {
        if let Err(error) = self.check_open() {
            return Err(InstallError::caused_by(format!("frame {frame}"), error));
        }
        self.position(frame, 0, FRAME_BYTES).map_err(|_| {
            self.counters.outside.fetch_add(1, Relaxed);
            let frames = self.frames();
            InstallError::new(format!("frame {frame} is outside a memory of {frames} frames"))
        })
    }

    /// Empties a frame; the caller holds its lock.
    fn empty(&self, frame: FrameIndex, bit: u8) -> io::Result<()> {
        let before = self.bits.clear(frame, PRESENT | TOUCHED | DIRTY | AWAITED | AHEAD);
        self.bits.set(frame, bit);
        if before & PRESENT == 0 {
            return Ok(());
        }
        self.counters.emptied.fetch_add(1, Relaxed);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let at = u64::from(frame.0) * FRAME_SIZE;
        Ok(rustix::fs::fallocate(&self.file, hole, at, FRAME_SIZE)?)
    }
}

impl PageInstaller for MockMemory {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        self.fill(frame, Some(page))
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.fill(frame, None)
    }

    fn wake(&self, frame: FrameIndex) -> Result<(), InstallError> {
        self.checked(frame)?;
        self.counters.wakes.fetch_add(1, Relaxed);
        self.waits.wake(frame.0..frame.0 + 1);
        Ok(())
    }

    fn evict(&self, frame: FrameIndex) -> Result<Eviction, InstallError> {
        self.checked(frame)?;
        let _lock = self.lock(frame).map(RwLock::write);
        if self.has(frame, TOUCHED) {
            return Ok(Eviction::InUse);
        }
        self.empty(frame, 0)
            .map_err(|e| InstallError::caused_by(format!("frame {frame}: the memory file"), e))?;
        self.counters.taken_back.fetch_add(1, Relaxed);
        Ok(Eviction::Evicted)
    }
}

impl std::fmt::Debug for MockMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let awaited = self.awaited();
        let statistics = self.statistics();
        f.debug_struct("MockMemory")
            .field("frames", &self.frames())
            .field("awaited", &awaited)
            .field("statistics", &statistics)
            .finish_non_exhaustive()
    }
}
