//! A page source for a snapshot image on this host.

use super::ports::{Delivery, PageSource, Priority, SourceError};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::memory::{Backing, GuestMemory, SnapshotId, is_zero, read_page};
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
    /// Room for the pages of a run. Taken by the thread that receives.
    buffer: Mutex<Vec<u8>>,
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
        let (asked, changed) = (Mutex::new(Asked::default()), Condvar::new());
        Self { memory, asked, changed, buffer: Mutex::new(Vec::new()) }
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

    /// Reads consecutive frames, with one call of the memory where that is possible.
    fn read_run(
        &self,
        run: &[FrameIndex],
        buffer: &mut Vec<u8>,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let Some(bytes) = self.bytes_of(run, buffer) else {
            return run.iter().try_for_each(|frame| self.read(*frame, deliver));
        };
        for (frame, page) in run.iter().zip(bytes.as_chunks().0) {
            let is_zero = is_zero(page);
            deliver(if is_zero { Delivery::Zero(*frame) } else { Delivery::Page(*frame, page) });
        }
        Ok(())
    }

    /// The bytes of consecutive frames, borrowed or read into `buffer`; `None` if they have to be
    /// read frame by frame.
    fn bytes_of<'a>(&'a self, run: &[FrameIndex], buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        let (first, last) = (*run.first()?, *run.last()?);
        let extent = self.memory.extent(first);
        let is_data = extent.backing == Backing::Data && extent.frames.contains(&last.0);
        if run.len() < 2 || !is_data {
            return None;
        }
        let (gpa, len) = (self.memory.layout().gfn_of(first)?.gpa(), run.len() * FRAME_BYTES);
        if let Some(bytes) = self.memory.slice(gpa, len) {
            return Some(bytes);
        }
        buffer.resize(BATCH * FRAME_BYTES, 0);
        let bytes = buffer.get_mut(..len)?;
        // Frames of two RAM regions are consecutive, too, and cannot be read at once.
        self.memory.read(gpa, bytes).ok()?;
        Some(bytes)
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
        let mut buffer = self.buffer.lock();
        let batch = batch.get(..n).unwrap_or_default();
        let mut runs = batch.chunk_by(|a, b| a.0.checked_add(1) == Some(b.0));
        runs.try_for_each(|run| self.read_run(run, &mut buffer, deliver))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::memory::{MemoryError, MemoryLayout, VecMemory};

    /// Memory whose bytes cannot be borrowed, and that lacks a frame.
    struct Dump(VecMemory);

    impl GuestMemory for Dump {
        fn layout(&self) -> &MemoryLayout {
            self.0.layout()
        }

        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
            let missing = Gpa(0x13000);
            if (gpa.0..gpa.0 + buf.len() as u64).contains(&missing.0) {
                return Err(MemoryError::Missing { gpa, len: buf.len() });
            }
            self.0.read(gpa, buf)
        }
    }

    /// What a source delivers: the first byte of a page.
    fn delivered(memory: Arc<dyn GuestMemory>, frames: &[u32]) -> Vec<(u32, Option<u8>)> {
        let source = LocalSource::new(memory);
        let frames: Vec<_> = frames.iter().copied().map(FrameIndex).collect();
        source.request(&frames, Priority::Prefetch).unwrap();
        let mut all = Vec::new();
        while all.len() < frames.len() {
            let mut take = |delivery: Delivery<'_>| {
                all.push((
                    delivery.frame().0,
                    match delivery {
                        Delivery::Page(_, page) => Some(page[0]),
                        Delivery::Zero(_) => Some(0),
                        Delivery::Unavailable(_) => None,
                    },
                ));
            };
            source.receive(Duration::ZERO, &mut take).unwrap();
        }
        all
    }

    /// Frames 0 to 3 and 4 to 43 are two regions; frame 7 is missing, frame 9 is zeros.
    #[test]
    fn runs_have_the_bytes_of_their_frames() {
        let layout = MemoryLayout::new(&[(Gpa(0), 0x4000), (Gpa(0x10000), 0x28000)]).unwrap();
        let mut memory = VecMemory::zeroed(layout);
        for (n, page) in (0u8..).zip(memory.bytes_mut().chunks_exact_mut(FRAME_BYTES)) {
            page.fill(if n == 9 { 0 } else { n + 1 });
        }
        let content = |frame: u32| if frame == 9 { 0 } else { u8::try_from(frame + 1).unwrap() };
        let frames: Vec<u32> = (0..44).chain([5, 40, 41, 2]).collect();
        let expected: Vec<_> = frames.iter().map(|frame| (*frame, Some(content(*frame)))).collect();
        assert_eq!(delivered(Arc::new(memory.clone()), &frames), expected);
        let without = expected.into_iter().map(|(n, byte)| (n, byte.filter(|_| n != 7)));
        assert_eq!(delivered(Arc::new(Dump(memory)), &frames), without.collect::<Vec<_>>());
    }
}
