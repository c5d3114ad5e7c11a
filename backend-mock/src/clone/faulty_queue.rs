//! A fault queue with whom something goes wrong.

use super::log::Call;
use super::script::{Failure, Script};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, FaultQueue, InstallError};
use kaleidoscope_core::prefetch::Access;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest wait while events are held back.
const TICK: Duration = Duration::from_millis(1);

/// Passes events on as a [`Script`] says. That frames were given back is never lost, repeated or
/// overtaken by a fault that came later: it happens once, and a system that got it wrong could not
/// be served by anybody.
pub struct FaultyQueue {
    inner: Arc<dyn FaultQueue>,
    script: Script,
    frames: u32,
    is_dead: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// To be read before anything else.
    ready: VecDeque<Event>,
    /// A fault that the next event overtakes.
    held: Option<Event>,
}

impl FaultyQueue {
    /// A queue of a memory of so many frames that fails as the script says.
    #[must_use]
    pub fn new(inner: Arc<dyn FaultQueue>, frames: u32, script: Script) -> Self {
        let (is_dead, kept) = (AtomicBool::new(false), Mutex::default());
        Self { inner, script, frames, is_dead, kept }
    }

    fn check(&self, call: Call) -> Result<(), InstallError> {
        let decided = self.script.begin(call, &[], "");
        if decided.has(Failure::Dead) {
            self.is_dead.store(true, Ordering::Release);
        }
        if self.is_dead.load(Ordering::Acquire) || decided.has(Failure::Fail) {
            self.script.end(&decided, "error");
            return Err(InstallError::new(format!("{call} fails, as scripted")));
        }
        Ok(())
    }

    /// What becomes of an event: passed on, lost, kept for later.
    fn pass(&self, kept: &mut Kept, event: Event) -> Option<Event> {
        let Event::Fault { frame, .. } = event else {
            let (frames, detail) = match &event {
                Event::Removed(range) => (range.clone().map(FrameIndex).collect(), "removed"),
                Event::Fault { .. } | Event::Closed => (Vec::new(), "closed"),
            };
            let _ = self.script.begin(Call::Event, &frames, detail);
            return Some(event);
        };
        let decided = self.script.begin(Call::Event, &[frame], "fault");
        if decided.has(Failure::Drop) {
            return None;
        }
        if decided.has(Failure::Twice) {
            kept.ready.push_back(event.clone());
        }
        if decided.has(Failure::Unasked) {
            let frame = self.script.below(u64::from(self.frames));
            let frame = FrameIndex(u32::try_from(frame).unwrap_or(0));
            kept.ready.push_back(event);
            return Some(Event::Fault { frame, access: Access::Unknown });
        }
        if decided.has(Failure::Reorder) {
            return kept.held.replace(event);
        }
        Some(event)
    }
}

impl FaultQueue for FaultyQueue {
    fn wait(&self, wait: Duration) -> Result<(), InstallError> {
        self.check(Call::Wait)?;
        let (is_ready, is_holding) = {
            let kept = self.kept.lock();
            (!kept.ready.is_empty(), kept.held.is_some())
        };
        match (is_ready, is_holding) {
            (true, _) => Ok(()),
            (false, true) => self.inner.wait(wait.min(TICK)),
            (false, false) => self.inner.wait(wait),
        }
    }

    fn read(&self) -> Result<Option<Event>, InstallError> {
        self.check(Call::Read)?;
        if self.script.take_excuse() {
            return Ok(Some(Event::Removed(0..0)));
        }
        let mut kept = self.kept.lock();
        if let Some(event) = kept.ready.pop_front() {
            return Ok(Some(event));
        }
        let held = kept.held.take();
        let event = self.inner.read()?;
        let event = event.and_then(|event| self.pass(&mut kept, event));
        match (event, held) {
            (None, held) => Ok(held),
            (Some(event), Some(held)) => {
                kept.ready.push_back(held);
                Ok(Some(event))
            }
            (event, None) => Ok(event),
        }
    }
}

impl std::fmt::Debug for FaultyQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultyQueue").field("script", &self.script).finish_non_exhaustive()
    }
}
