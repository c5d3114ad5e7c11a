//! The promises that every memory keeps.

use super::Stage;
use super::pages::{LazyPages, Part};
use crate::sys::Mapping;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::{FaultQueue, Placer};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_mock::clone::contract::{self, Subject};
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A clone's memory as its vCPUs touch it.
struct Touched {
    pages: LazyPages,
    mapping: Arc<Mapping>,
    has_balloon: bool,
}

impl Touched {
    fn new(frames: u32, is_staged: bool) -> Outcome<Self> {
        let layout = MemoryLayout::contiguous(u64::from(frames) << 12)?;
        let stage = is_staged.then(|| Stage::new(layout)).transpose()?;
        let mapping = Arc::new(match &stage {
            Some(stage) => stage.map()?,
            None => Mapping::anonymous(frames as usize * FRAME_BYTES)?,
        });
        let part = Part { mapping: Arc::clone(&mapping), frames: 0..frames };
        let pages = LazyPages::new(&[part], 2, stage)?;
        Ok(Self { pages, mapping, has_balloon: !is_staged })
    }
}

fn offset(frame: FrameIndex, offset: usize) -> usize {
    frame.as_usize() * FRAME_BYTES + offset
}

impl Subject for Touched {
    fn placer(&self) -> &dyn Placer {
        &self.pages
    }

    fn queue(&self) -> &dyn FaultQueue {
        &self.pages
    }

    fn read(&self, frame: FrameIndex, at: usize, buf: &mut [u8]) -> Outcome<()> {
        Ok(self.mapping.read(offset(frame, at), buf)?)
    }

    fn write(&self, frame: FrameIndex, at: usize, bytes: &[u8]) -> Outcome<()> {
        Ok(self.mapping.write(offset(frame, at), bytes)?)
    }

    fn give_back(&self, frames: Range<u32>) -> Outcome<bool> {
        if self.has_balloon {
            let bytes = offset(FrameIndex(frames.start), 0)..offset(FrameIndex(frames.end), 0);
            self.mapping.discard(bytes)?;
        }
        Ok(self.has_balloon)
    }

    fn close(&self) {
        self.pages.revoke();
    }
}

fn is_skipped() -> bool {
    match Touched::new(1, false) {
        Ok(_) => false,
        Err(error) => {
            println!("******** SKIPPED: {error} ********");
            true
        }
    }
}

#[test]
fn copied_memory_keeps_the_contracts() {
    if !is_skipped() {
        contract::placer(&|frames| Touched::new(frames, false)).unwrap();
        contract::fault_queue(&|frames| Touched::new(frames, false)).unwrap();
    }
}

#[test]
fn staged_memory_keeps_the_contracts() {
    if !is_skipped() {
        contract::placer(&|frames| Touched::new(frames, true)).unwrap();
        contract::fault_queue(&|frames| Touched::new(frames, true)).unwrap();
    }
}
