//! Copying ahead of a guest's writing, beside it.

use super::Machine;
use crate::error::{Asked, KvmError};
use crate::memory::GuestRam;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::prefetch::AllocationForecast;
use parking_lot::RwLock;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, park_timeout};
use std::time::Duration;

/// Frames that are copied in one go: a freeze waits for no more.
const PIECE: u32 = 32;

/// How soon it is looked again how far a guest has come: after it has gone on, and, ever later,
/// when it has not.
const SOON: Duration = Duration::from_micros(500);
const LATE: Duration = Duration::from_millis(64);

/// After so long a rest a guest is followed no further.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A thread that gives a machine frames of its own.
#[derive(Debug)]
pub(super) struct CopyAhead {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works on.
struct Work {
    ram: Arc<RwLock<GuestRam>>,
    is_over: Arc<AtomicBool>,
}

/// Why the thread ends early.
struct Over;

impl Work {
    fn go_on(&self) -> Result<(), Over> {
        if self.is_over.load(Ordering::Relaxed) { Err(Over) } else { Ok(()) }
    }

    /// Copies frames. The guest copies for itself what could not be copied here, for lack of memory
    /// say.
    fn copy(&self, frames: &[Range<u32>]) -> Result<(), Over> {
        for run in frames {
            for start in run.clone().step_by(PIECE as usize) {
                self.go_on()?;
                let piece = start..start.saturating_add(PIECE).min(run.end);
                self.ram.read().own(piece).map_err(|_| Over)?;
            }
        }
        Ok(())
    }

    /// Copies what the guest's kernel will give away next, as long as it goes on giving.
    fn follow(&self, mut forecast: AllocationForecast) -> Result<(), Over> {
        let (mut rest, mut rested) = (SOON, Duration::ZERO);
        while rested < TIMEOUT {
            self.go_on()?;
            let next = {
                let ram = self.ram.read();
                let pages = ram.pages().map_err(|_| Over)?;
                // What cannot be known counts as not written: then nothing is copied.
                forecast.advance(|FrameIndex(frame)| pages.is_own(frame).unwrap_or(false))
            };
            if next.is_empty() {
                park_timeout(rest);
                rested = rested.saturating_add(rest);
                rest = rest.saturating_mul(2).min(LATE);
            } else {
                self.copy(&next)?;
                (rest, rested) = (SOON, Duration::ZERO);
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
    ) -> Result<Self, KvmError> {
        let is_over = Arc::new(AtomicBool::new(false));
        let work = Work { ram, is_over: Arc::clone(&is_over) };
        let run = move || {
            let done = work.copy(&frames);
            // Whoever ended it knows; what could not be copied copy_ahead is only slower.
            let _ = done.and_then(|()| following.map_or(Ok(()), |forecast| work.follow(forecast)));
        };
        let thread = std::thread::Builder::new().name("copy_ahead".into()).stack_size(128 << 10);
        let thread = thread.spawn(run).asked("starting a thread that copies copy_ahead")?;
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for CopyAhead {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic there has been reported.
            let _ = thread.join();
        }
    }
}

impl Machine {
    /// Gives frames memory of their own while the guest runs, on a thread beside it: what is copied
    /// before the guest writes to it, the guest does not wait for. First those (sorted ranges)
    /// that will be written, as a [forecast](kaleidoscope_core::prefetch::WriteForecast) has them;
    /// then, if it is to be followed, what its kernel will give away next of its free memory,
    /// as long as it does not rest for ten seconds.
    ///
    /// What was begun before is given up. Memory that is the machine's alone anyway, or that comes
    /// page by page, is left as it is.
    ///
    /// # Errors
    /// [`KvmError`] when there is no thread to be had. Frames that cannot be copied are left to the
    /// guest.
    pub fn copy_ahead(
        &mut self,
        frames: Vec<Range<u32>>,
        following: Option<AllocationForecast>,
    ) -> Result<(), KvmError> {
        self.copying = None;
        if (!frames.is_empty() || following.is_some()) && self.ram.read().is_shared() {
            self.copying = Some(CopyAhead::start(Arc::clone(&self.ram), frames, following)?);
        }
        Ok(())
    }
}
