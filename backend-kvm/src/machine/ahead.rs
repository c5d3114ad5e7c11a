//! Copying ahead of a guest's writing, beside it.

use super::Machine;
use crate::error::{Asked, KvmError};
use crate::memory::GuestRam;
use parking_lot::RwLock;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Frames that are copied in one go: a freeze waits for no more.
const PIECE: u32 = 32;

/// A thread that gives a machine frames of its own.
#[derive(Debug)]
pub(super) struct Ahead {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    fn start(ram: Arc<RwLock<GuestRam>>, frames: Vec<Range<u32>>) -> Result<Self, KvmError> {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let copy = move || {
            for run in frames {
                for start in run.clone().step_by(PIECE as usize) {
                    let piece = start..start.saturating_add(PIECE).min(run.end);
                    // The guest copies for itself what could not be copied here, for lack of memory say.
                    if over.load(Ordering::Relaxed) || ram.read().own(piece).is_err() {
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("ahead".into()).stack_size(128 << 10);
        let thread = thread.spawn(copy).asked("starting a thread that copies ahead")?;
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported.
            let _ = thread.join();
        }
    }
}

impl Machine {
    /// Gives frames (sorted ranges) memory of their own while the guest runs, on a thread beside it: what is copied before the guest writes to it,
    /// the guest does not wait for. For frames that will be written, as a [forecast](kaleidoscope_core::prefetch::WriteForecast) has them.
    /// What was begun before is given up. Memory that is the machine's alone anyway, or that comes page by page, is left as it is.
    ///
    /// # Errors
    /// [`KvmError`] when there is no thread to be had. Frames that cannot be copied are left to the guest.
    pub fn own_ahead(&mut self, frames: Vec<Range<u32>>) -> Result<(), KvmError> {
        self.ahead = None;
        if !frames.is_empty() && self.ram.read().is_shared() {
            self.ahead = Some(Ahead::start(Arc::clone(&self.ram), frames)?);
        }
        Ok(())
    }
}
