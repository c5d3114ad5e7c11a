//! A page source with whom something goes wrong.

use super::log::Call;
use super::script::{Failure, Script};
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::{Delivery, PageSource, Priority, SourceError};
use kaleidoscope_core::memory::Page;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often deliveries that are held back are looked at.
const TICK: Duration = Duration::from_millis(1);

/// Passes requests and deliveries on as a [`Script`] says.
pub struct FaultySource {
    inner: Arc<dyn PageSource>,
    script: Script,
    frames: u32,
    is_dead: AtomicBool,
    held: Mutex<Vec<Held>>,
}

/// A delivery that others overtake.
struct Held {
    delivery: Owned,
    /// When it is due; `None` for a random time.
    due: Option<Instant>,
}

/// A delivery with its bytes.
enum Owned {
    Page(FrameIndex, Box<Page>),
    Zero(FrameIndex),
    Unavailable(FrameIndex),
}

impl FaultySource {
    /// A source of a guest of so many frames that fails as the script says.
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

    /// What becomes of a delivery: handed over, held back, changed.
    fn pass(&self, mut delivery: Owned, deliver: &mut dyn FnMut(Delivery<'_>)) {
        let frame = delivery.frame();
        let decided = self.script.begin(Call::Deliver, &[frame], delivery.kind());
        if decided.has(Failure::Drop) {
            return;
        }
        if let Owned::Page(_, page) = &mut delivery
            && decided.has(Failure::Corrupt)
        {
            let at = usize::try_from(self.script.below(FRAME_BYTES as u64)).unwrap_or(0);
            page.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 0x40);
        }
        if decided.has(Failure::Unavailable) {
            delivery = Owned::Unavailable(frame);
        }
        if decided.has(Failure::Outside) {
            deliver(Delivery::Zero(FrameIndex(self.frames)));
            deliver(Delivery::Zero(FrameIndex(u32::MAX)));
        }
        if decided.has(Failure::Twice) {
            deliver(delivery.borrow());
        }
        match (decided.delay(), decided.has(Failure::Reorder)) {
            (Some(delay), _) => {
                let due = Some(Instant::now() + delay);
                self.held.lock().push(Held { delivery, due });
            }
            (None, true) => self.held.lock().push(Held { delivery, due: None }),
            (None, false) => deliver(delivery.borrow()),
        }
    }

    /// Hands over what is due, and some of what is held back for a random time: all of it if
    /// nothing else came.
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
        let decided = self.script.begin(Call::Request, frames, detail);
        let result = self.check(&decided.failures, Call::Request).and_then(|()| {
            if decided.has(Failure::Unasked) {
                let frame = self.script.below(u64::from(self.frames));
                let frame = FrameIndex(u32::try_from(frame).unwrap_or(0));
                self.inner.request(&[frame], Priority::Prefetch)?;
            }
            if decided.has(Failure::Drop) {
                return Ok(());
            }
            if decided.has(Failure::Twice) {
                self.inner.request(frames, priority)?;
            }
            self.inner.request(frames, priority)
        });
        if let Err(error) = &result {
            self.script.end(&decided, error);
        }
        result
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let decided = self.script.begin(Call::Receive, &[], "");
        let end = Instant::now().checked_add(wait);
        loop {
            let result = self.check(&decided.failures, Call::Receive);
            if let Err(error) = result {
                self.script.end(&decided, &error);
                return Err(error);
            }
            let left = end.map_or(wait, |end| end.saturating_duration_since(Instant::now()));
            let step = if self.held.lock().is_empty() { left } else { left.min(TICK) };
            let mut arrived = Vec::new();
            self.inner.receive(step, &mut |delivery| arrived.push(Owned::of(delivery)))?;
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
}

impl Owned {
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
