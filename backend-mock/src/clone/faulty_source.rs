//! A page source with injected failures.

use super::log::Call;
use super::script::{Failure, Script};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::{Delivery, PageSource, Priority, SourceError};
use kaleidoscope_core::memory::{Page, SnapshotId};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Interval at which delayed deliveries are checked.
const TICK: Duration = Duration::from_millis(1);

/// Forwards requests and deliveries to another source, with the failures of a [`Script`].
pub struct FaultySource {
    inner: Arc<dyn PageSource>,
    script: Script,
    frames: u32,
    is_dead: AtomicBool,
    held: Mutex<Vec<DelayedDelivery>>,
}

/// A delivery that is held back, so that later ones overtake it.
struct DelayedDelivery {
    delivery: OwnedDelivery,
    /// When to deliver it; `None` for a random time.
    due: Option<Instant>,
}

/// An owned copy of a [`Delivery`].
enum OwnedDelivery {
    Page(FrameIndex, Box<Page>),
    Zero(FrameIndex),
    Unavailable(FrameIndex),
}

impl FaultySource {
    /// Wraps the source of a guest with `frames` frames.
    #[must_use]
    pub fn new(inner: Arc<dyn PageSource>, frames: u32, script: Script) -> Self {
        Self { inner, script, frames, is_dead: AtomicBool::new(false), held: Mutex::default() }
    }

    /// Kills the source: every later call fails.
    pub fn kill(&self) {
        self.is_dead.store(true, Ordering::Release);
    }

    fn check(&self, failures: &[Failure], call: Call) -> Result<(), SourceError> {
        if failures.contains(&Failure::Dead) {
            self.kill();
        }
        if self.is_dead.load(Ordering::Acquire) {
            return Err(SourceError::new("the source is dead, as scripted"));
        }
        if failures.contains(&Failure::Fail) {
            return Err(SourceError::new(format!("{call} fails, as scripted")));
        }
        Ok(())
    }

    /// Applies the script to a delivery: forwards, delays, changes or drops it.
    fn pass(&self, mut delivery: OwnedDelivery, deliver: &mut dyn FnMut(Delivery<'_>)) {
        let frame = delivery.frame();
        let decision = self.script.begin(Call::Deliver, &[frame], delivery.kind());
        if decision.has(Failure::Drop) {
            return;
        }
        if let OwnedDelivery::Page(_, page) = &mut delivery
            && decision.has(Failure::Corrupt)
        {
            let at = usize::try_from(self.script.below(FRAME_BYTES as u64)).unwrap_or(0);
            page.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 0x40);
        }
        if decision.has(Failure::Unavailable) {
            delivery = OwnedDelivery::Unavailable(frame);
        }
        if decision.has(Failure::Outside) {
            deliver(Delivery::Zero(FrameIndex(self.frames)));
            deliver(Delivery::Zero(FrameIndex(u32::MAX)));
        }
        if decision.has(Failure::Twice) {
            deliver(delivery.borrow());
        }
        match (decision.delay(), decision.has(Failure::Reorder)) {
            (Some(delay), _) => {
                let due = Some(Instant::now() + delay);
                self.held.lock().push(DelayedDelivery { delivery, due });
            }
            (None, true) => self.held.lock().push(DelayedDelivery { delivery, due: None }),
            (None, false) => deliver(delivery.borrow()),
        }
    }

    /// Delivers what is due, and a random part of the deliveries without a time: all of them if no
    /// new ones arrived.
    fn release(&self, is_idle: bool, deliver: &mut dyn FnMut(Delivery<'_>)) -> bool {
        let mut held = self.held.lock();
        let now = Instant::now();
        let mut due: Vec<_> = held
            .extract_if(.., |held| match held.due {
                Some(due) => due <= now,
                None => is_idle || self.script.below(2) == 0,
            })
            .map(|held| held.delivery)
            .collect();
        drop(held);
        let released = !due.is_empty();
        while !due.is_empty() {
            let at = usize::try_from(self.script.below(due.len() as u64)).unwrap_or(0);
            deliver(due.swap_remove(at).borrow());
        }
        released
    }
}

impl PageSource for FaultySource {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        let detail = match priority {
            Priority::Urgent => "urgent",
            Priority::Prefetch => "prefetch",
        };
        let decision = self.script.begin(Call::Request, frames, detail);
        let result = self.check(&decision.failures, Call::Request).and_then(|()| {
            if decision.has(Failure::Unasked) {
                let frame = self.script.below(u64::from(self.frames));
                let frame = FrameIndex(u32::try_from(frame).unwrap_or(0));
                self.inner.request(&[frame], Priority::Prefetch)?;
            }
            if decision.has(Failure::Drop) {
                return Ok(());
            }
            if decision.has(Failure::Twice) {
                self.inner.request(frames, priority)?;
            }
            self.inner.request(frames, priority)
        });
        if let Err(error) = &result {
            self.script.end(&decision, error);
        }
        result
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let decision = self.script.begin(Call::Receive, &[], "");
        let end = Instant::now().checked_add(wait);
        loop {
            let result = self.check(&decision.failures, Call::Receive);
            if let Err(error) = result {
                self.script.end(&decision, &error);
                return Err(error);
            }
            let left = end.map_or(wait, |end| end.saturating_duration_since(Instant::now()));
            let step = if self.held.lock().is_empty() { left } else { left.min(TICK) };
            let mut arrived = Vec::new();
            self.inner.receive(step, &mut |delivery| arrived.push(OwnedDelivery::of(delivery)))?;
            let is_idle = arrived.is_empty();
            for delivery in arrived {
                self.pass(delivery, deliver);
            }
            if self.release(is_idle, deliver) || !is_idle || left <= step {
                return Ok(());
            }
        }
    }

    fn window(&self) -> usize {
        self.inner.window()
    }

    fn snapshot_id(&self) -> Option<SnapshotId> {
        self.inner.snapshot_id()
    }
}

impl OwnedDelivery {
    fn of(delivery: Delivery<'_>) -> Self {
        match delivery {
            Delivery::Page(frame, page) => Self::Page(frame, Box::new(*page)),
            Delivery::Zero(frame) => Self::Zero(frame),
            Delivery::Unavailable(frame) => Self::Unavailable(frame),
        }
    }

    fn borrow(&self) -> Delivery<'_> {
        match self {
            Self::Page(frame, page) => Delivery::Page(*frame, page),
            Self::Zero(frame) => Delivery::Zero(*frame),
            Self::Unavailable(frame) => Delivery::Unavailable(*frame),
        }
    }

    fn frame(&self) -> FrameIndex {
        self.borrow().frame()
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Page(..) => "page",
            Self::Zero(_) => "zero",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl std::fmt::Debug for FaultySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.held.lock().len();
        f.debug_struct("FaultySource").field("held", &held).finish_non_exhaustive()
    }
}
