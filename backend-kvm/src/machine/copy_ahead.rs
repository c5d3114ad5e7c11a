//! Copying shared frames ahead of the guest's writes, in the background.

use super::Machine;
use crate::error::{Asked, Error};
use crate::memory::GuestRam;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::prefetch::AllocationForecast;
use parking_lot::RwLock;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, park_timeout};
use std::time::Duration;

/// Frames copied per lock acquisition. A freeze waits for at most one such copy.
const PIECE: u32 = 32;

/// Interval at which the guest's progress is checked: right after progress, and the maximum that
/// the interval doubles to without any.
const MIN_INTERVAL: Duration = Duration::from_micros(500);
const MAX_INTERVAL: Duration = Duration::from_millis(64);

/// A guest without progress for this long is followed no further.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// A thread that gives a machine private copies of frames.
#[derive(Debug)]
pub(super) struct CopyAhead {
    is_canceled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// State of the thread.
struct Work {
    ram: Arc<RwLock<GuestRam>>,
    is_canceled: Arc<AtomicBool>,
}

/// The thread was told to end.
struct Canceled;

impl Work {
    fn check_canceled(&self) -> Result<(), Canceled> {
        if self.is_canceled.load(Ordering::Relaxed) { Err(Canceled) } else { Ok(()) }
    }

    /// Copies frames. A frame that cannot be copied here, for lack of memory for example, is copied
    /// when the guest writes to it.
    fn copy(&self, frames: &[Range<u32>]) -> Result<(), Canceled> {
        for run in frames {
            for start in run.clone().step_by(PIECE as usize) {
                self.check_canceled()?;
                let piece = start..start.saturating_add(PIECE).min(run.end);
                self.ram.read().own(piece).map_err(|_| Canceled)?;
            }
        }
        Ok(())
    }

    /// Copies the frames that the guest's kernel will allocate next, while it keeps allocating.
    fn follow(&self, mut forecast: AllocationForecast) -> Result<(), Canceled> {
        let (mut interval, mut idle) = (MIN_INTERVAL, Duration::ZERO);
        while idle < IDLE_TIMEOUT {
            self.check_canceled()?;
            let next = {
                let ram = self.ram.read();
                let pages = ram.pages().map_err(|_| Canceled)?;
                // An unknown state counts as not written, so that nothing is copied for it.
                forecast.advance(|FrameIndex(frame)| pages.is_own(frame).unwrap_or(false))
            };
            if next.is_empty() {
                park_timeout(interval);
                idle = idle.saturating_add(interval);
                interval = interval.saturating_mul(2).min(MAX_INTERVAL);
            } else {
                self.copy(&next)?;
                (interval, idle) = (MIN_INTERVAL, Duration::ZERO);
            }
        }
        Ok(())
    }
}

impl CopyAhead {
    fn start(
        ram: Arc<RwLock<GuestRam>>,
        frames: Vec<Range<u32>>,
        following: Option<AllocationForecast>,
    ) -> Result<Self, Error> {
        let is_canceled = Arc::new(AtomicBool::new(false));
        let work = Work { ram, is_canceled: Arc::clone(&is_canceled) };
        let run = move || {
            let done = work.copy(&frames);
            // Errors only mean that the thread was canceled, or that the guest copies for itself.
            let _ = done.and_then(|()| following.map_or(Ok(()), |forecast| work.follow(forecast)));
        };
        let thread = std::thread::Builder::new().name("copy_ahead".into()).stack_size(128 << 10);
        let thread = thread.spawn(run).asked("starting the copy-ahead thread")?;
        Ok(Self { is_canceled, thread: Some(thread) })
    }
}

impl Drop for CopyAhead {
    fn drop(&mut self) {
        self.is_canceled.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The panic has been reported.
            let _ = thread.join();
        }
    }
}

impl Machine {
    /// Gives frames private memory while the guest runs, on a background thread, so that the guest
    /// does not wait for the copy when it first writes to them. The thread copies `frames` (sorted
    /// ranges of frame indexes, end exclusive) first, as a
    /// [forecast](kaleidoscope_core::prefetch::WriteForecast) predicts them. With `following`, it
    /// then copies the free memory that the guest's kernel will allocate next, until the guest
    /// allocates nothing for ten seconds.
    ///
    /// A call cancels the work of the previous one. Machines whose memory is not shared with an
    /// image, or is filled on demand, are left as they are.
    ///
    /// # Errors
    /// [`Error`] when the thread cannot be started. Frames that cannot be copied are left to the
    /// guest.
    pub fn copy_ahead(
        &mut self,
        frames: Vec<Range<u32>>,
        following: Option<AllocationForecast>,
    ) -> Result<(), Error> {
        self.copy_ahead = None;
        if (!frames.is_empty() || following.is_some()) && self.ram.read().is_shared() {
            self.copy_ahead = Some(CopyAhead::start(Arc::clone(&self.ram), frames, following)?);
        }
        Ok(())
    }
}
