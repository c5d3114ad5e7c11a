//! A page source without a way to go: pages of a frozen memory, at once.

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Delivery, PageSource, Priority, SourceError};
use kaleidoscope_core::memory::{GuestMemory, ZERO_PAGE, is_zero};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most frames that one call of `receive` delivers.
const BATCH: usize = 32;

/// Delivers the pages of a frozen memory in the order of the requests, urgent ones first. Frames whose bytes cannot be read, or
/// that do not exist, are unavailable.
pub struct MockSource {
    memory: Arc<dyn GuestMemory>,
    asked: Mutex<Asked>,
    arrived: Condvar,
}

#[derive(Default)]
struct Asked {
    urgent: VecDeque<FrameIndex>,
    prefetch: VecDeque<FrameIndex>,
}

impl MockSource {
    /// A source of these bytes.
    #[must_use]
    pub fn new(memory: Arc<dyn GuestMemory>) -> Self {
        Self { memory, asked: Mutex::default(), arrived: Condvar::new() }
    }
}

impl PageSource for MockSource {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        let mut asked = self.asked.lock();
        match priority {
            Priority::Urgent => asked.urgent.extend(frames),
            Priority::Prefetch => asked.prefetch.extend(frames),
        }
        drop(asked);
        self.arrived.notify_all();
        Ok(())
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let end = Instant::now().checked_add(wait);
        let mut asked = self.asked.lock();
        while asked.urgent.is_empty() && asked.prefetch.is_empty() {
            match end {
                None => self.arrived.wait(&mut asked),
                Some(end) if Instant::now() < end => {
                    self.arrived.wait_until(&mut asked, end);
                }
                Some(_) => return Ok(()),
            }
        }
        let mut frames = Vec::with_capacity(BATCH);
        while frames.len() < BATCH {
            let urgent = asked.urgent.pop_front();
            let Some(frame) = urgent.or_else(|| asked.prefetch.pop_front()) else { break };
            frames.push(frame);
        }
        drop(asked);
        let mut page = ZERO_PAGE;
        for frame in frames {
            let gfn = self.memory.layout().gfn_of(frame);
            match gfn.map(|gfn| self.memory.read(gfn.gpa(), &mut page)) {
                Some(Ok(())) if is_zero(&page) => deliver(Delivery::Zero(frame)),
                Some(Ok(())) => deliver(Delivery::Page(frame, &page)),
                Some(Err(_)) | None => deliver(Delivery::Unavailable(frame)),
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for MockSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let asked = self.asked.lock();
        let (urgent, prefetch) = (asked.urgent.len(), asked.prefetch.len());
        write!(f, "MockSource {{ urgent: {urgent}, prefetch: {prefetch} }}")
    }
}
