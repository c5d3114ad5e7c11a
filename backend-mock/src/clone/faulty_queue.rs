//! A fault queue with injected failures.

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

/// Longest wait while an event is held back.
const TICK: Duration = Duration::from_millis(1);

/// Forwards events of another queue, with the failures of a [`Script`]. Removal events are never
/// lost, repeated or overtaken by later faults: the kernel delivers each exactly once and in order,
/// and no handler could work without that.
pub struct FaultyQueue {
    inner: Arc<dyn FaultQueue>,
    script: Script,
    frames: u32,
    is_dead: AtomicBool,
    pending: Mutex<PendingEvents>,
}

#[derive(Default)]
struct PendingEvents {
    /// Events to be returned next.
    ready: VecDeque<Event>,
    /// A fault that the next event overtakes.
    held: Option<Event>,
}

impl FaultyQueue {
    /// Wraps the queue of a memory with `frames` frames.
    #[must_use]
    pub fn new(inner: Arc<dyn FaultQueue>, frames: u32, script: Script) -> Self {
        let (is_dead, pending) = (AtomicBool::new(false), Mutex::default());
        Self { inner, script, frames, is_dead, pending }
    }

    fn check(&self, call: Call) -> Result<(), InstallError> {
        let decision = self.script.begin(call, &[], "");
        if decision.has(Failure::Dead) {
            self.is_dead.store(true, Ordering::Release);
        }
        if self.is_dead.load(Ordering::Acquire) || decision.has(Failure::Fail) {
            self.script.end(&decision, "error");
            return Err(InstallError::new(format!("{call} fails, as scripted")));
        }
        Ok(())
    }

    /// Applies the script to an event: forwards, drops or holds it.
    fn pass(&self, pending: &mut PendingEvents, event: Event) -> Option<Event> {
        let Event::Fault { frame, .. } = event else {
            let (frames, detail) = match &event {
                Event::Removed(range) => (range.clone().map(FrameIndex).collect(), "removed"),
                Event::Fault { .. } | Event::Closed => (Vec::new(), "closed"),
            };
            let _ = self.script.begin(Call::Event, &frames, detail);
            return Some(event);
        };
        let decision = self.script.begin(Call::Event, &[frame], "fault");
        if decision.has(Failure::Drop) {
            return None;
        }
        if decision.has(Failure::Twice) {
            pending.ready.push_back(event.clone());
        }
        if decision.has(Failure::Unasked) {
            let frame = self.script.below(u64::from(self.frames));
            let frame = FrameIndex(u32::try_from(frame).unwrap_or(0));
            pending.ready.push_back(event);
            return Some(Event::Fault { frame, access: Access::Unknown });
        }
        if decision.has(Failure::Reorder) {
            return pending.held.replace(event);
        }
        Some(event)
    }
}

impl FaultQueue for FaultyQueue {
    fn wait(&self, wait: Duration) -> Result<(), InstallError> {
        self.check(Call::Wait)?;
        let (is_ready, is_holding) = {
            let pending = self.pending.lock();
            (!pending.ready.is_empty(), pending.held.is_some())
        };
        match (is_ready, is_holding) {
            (true, _) => Ok(()),
            (false, true) => self.inner.wait(wait.min(TICK)),
            (false, false) => self.inner.wait(wait),
        }
    }

    fn read(&self) -> Result<Option<Event>, InstallError> {
        self.check(Call::Read)?;
        if self.script.take_owed_event() {
            return Ok(Some(Event::Removed(0..0)));
        }
        let mut pending = self.pending.lock();
        if let Some(event) = pending.ready.pop_front() {
            return Ok(Some(event));
        }
        let held = pending.held.take();
        let event = self.inner.read()?;
        let event = event.and_then(|event| self.pass(&mut pending, event));
        match (event, held) {
            (None, held) => Ok(held),
            (Some(event), Some(held)) => {
                pending.ready.push_back(held);
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
