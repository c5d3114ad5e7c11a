//! A page source for a snapshot image on this host.

use super::ports::{Delivery, PageSource, Priority, SourceError};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::memory::{GuestMemory, SnapshotId, is_zero, read_page};
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Maximum frames that one `receive` delivers, so that an urgent frame never waits for more.
const BATCH: usize = 32;

/// A page source for a snapshot image that is mapped or held in this process.
pub struct LocalSource {
    memory: Arc<dyn GuestMemory>,
    asked: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Asked {
    urgent: VecDeque<FrameIndex>,
    prefetch: VecDeque<FrameIndex>,
}

impl LocalSource {
    /// A source that reads frames of a snapshot image.
    #[must_use]
    pub fn new(memory: Arc<dyn GuestMemory>) -> Self {
        Self { memory, asked: Mutex::new(Asked::default()), changed: Condvar::new() }
    }

    fn read(
        &self,
        frame: FrameIndex,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let Some(gfn) = self.memory.layout().gfn_of(frame) else {
            let frames = self.memory.layout().frames();
            let what = format!("frame {frame} was requested, but the image has {frames} frames");
            return Err(SourceError::new(what));
        };
        let mut buffer = [0; FRAME_BYTES];
        let page = match read_page(&*self.memory, gfn, &mut buffer) {
            Ok(Some(page)) => page,
            Ok(None) => {
                deliver(Delivery::Unavailable(frame));
                return Ok(());
            }
            Err(error) => {
                let what = format!("frame {frame} of the image cannot be read");
                return Err(SourceError::caused_by(what, error));
            }
        };
        deliver(if is_zero(page) { Delivery::Zero(frame) } else { Delivery::Page(frame, page) });
        Ok(())
    }
}

impl PageSource for LocalSource {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        let mut asked = self.asked.lock();
        match priority {
            Priority::Urgent => asked.urgent.extend(frames),
            Priority::Prefetch => asked.prefetch.extend(frames),
        }
        drop(asked);
        self.changed.notify_all();
        Ok(())
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let mut batch = [FrameIndex(0); BATCH];
        let mut asked = self.asked.lock();
        if asked.urgent.is_empty() && asked.prefetch.is_empty() {
            asked = self.changed.wait_for(asked, wait);
        }
        let mut n = 0;
        while let Some(slot) = batch.get_mut(n)
            && let Some(frame) = asked.urgent.pop_front().or_else(|| asked.prefetch.pop_front())
        {
            *slot = frame;
            n += 1;
        }
        drop(asked);
        batch.iter().take(n).try_for_each(|frame| self.read(*frame, deliver))
    }

    fn snapshot_id(&self) -> Option<SnapshotId> {
        self.memory.snapshot_id()
    }
}

impl fmt::Debug for LocalSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSource").field("asked", &self.asked).finish_non_exhaustive()
    }
}
