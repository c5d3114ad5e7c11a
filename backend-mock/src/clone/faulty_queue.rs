//! A fault queue with whom something goes wrong.

use super::log::Call;
use super::script::{Failure, Script};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, FaultQueue, PlaceError};
use kaleidoscope_core::prefetch::Access;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often one thread looks at what another one has held back.
const TICK: Duration = Duration::from_millis(2);

/// Passes events on as a [`Script`] says. That frames were given back is never lost, repeated or overtaken: it happens once, and
/// a system that got it wrong could not be served by anybody.
pub struct FaultyQueue {
    inner: Arc<dyn FaultQueue>,
    script: Script,
    frames: u32,
    is_dead: AtomicBool,
    /// Faults to report before anything else.
    ready: Mutex<VecDeque<Event>>,
    /// A fault that the next event overtakes.
    held: Mutex<Option<Event>>,
}

impl FaultyQueue {
    /// A queue of a memory of so many frames that fails as the script says.
    #[must_use]
    pub fn new(inner: Arc<dyn FaultQueue>, frames: u32, script: Script) -> Self {
        let (ready, held) = (Mutex::default(), Mutex::default());
        Self { inner, script, frames, is_dead: AtomicBool::new(false), ready, held }
    }

    fn pass(&self, event: Event) -> Option<Event> {
        let Event::Fault { frame, .. } = event else {
            let (frames, detail) = match &event {
                Event::Removed(range) => (vec![range.start, range.end], "removed"),
                Event::Fault { .. } | Event::Closed => (Vec::new(), "closed"),
            };
            let frames: Vec<_> = frames.into_iter().map(FrameIndex).collect();
            let _ = self.script.begin(Call::Event, &frames, detail);
            return Some(event);
        };
        let decided = self.script.begin(Call::Event, &[frame], "fault");
        if decided.has(Failure::Drop) {
            return None;
        }
        if decided.has(Failure::Twice) {
            self.ready.lock().push_back(event.clone());
        }
        if decided.has(Failure::Unasked) {
            let frame = self.script.below(u64::from(self.frames));
            let frame = FrameIndex(u32::try_from(frame).unwrap_or(0));
            self.ready.lock().push_back(event);
            return Some(Event::Fault { frame, access: Access::Unknown });
        }
        if decided.has(Failure::Reorder) {
            return self.held.lock().replace(event);
        }
        Some(event)
    }
}

impl FaultQueue for FaultyQueue {
    fn next(&self, wait: Duration) -> Result<Option<Event>, PlaceError> {
        let decided = self.script.begin(Call::Next, &[], "");
        if decided.has(Failure::Dead) {
            self.is_dead.store(true, Ordering::Release);
        }
        if self.is_dead.load(Ordering::Acquire) || decided.has(Failure::Fail) {
            self.script.end(&decided, "error");
            return Err(PlaceError::new("next fails, as scripted"));
        }
        let end = Instant::now().checked_add(wait);
        loop {
            if self.script.take_excuse() {
                return Ok(Some(Event::Removed(0..0)));
            }
            if let Some(event) = self.ready.lock().pop_front() {
                return Ok(Some(event));
            }
            let left = end.map_or(wait, |end| end.saturating_duration_since(Instant::now()));
            let is_holding = self.held.lock().is_some();
            let step = left.min(TICK);
            match self.inner.next(step)? {
                Some(event) => {
                    if let Some(event) = self.pass(event) {
                        // What it has overtaken comes next.
                        if is_holding && let Some(held) = self.held.lock().take() {
                            self.ready.lock().push_back(held);
                        }
                        return Ok(Some(event));
                    }
                }
                None => {
                    if let Some(held) = self.held.lock().take() {
                        return Ok(Some(held));
                    }
                    if left <= step {
                        return Ok(None);
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for FaultyQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultyQueue").field("script", &self.script).finish_non_exhaustive()
    }
}
