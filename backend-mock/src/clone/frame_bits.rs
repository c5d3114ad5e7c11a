//! Per-frame state of a mock memory, in one byte.

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::memory::LazyTable;
use std::sync::atomic::{AtomicU8, Ordering};

/// The frame has bytes.
pub(super) const PRESENT: u8 = 1 << 0;
/// A vCPU has touched it since it was filled.
pub(super) const TOUCHED: u8 = 1 << 1;
/// A vCPU has written to it since it was filled.
pub(super) const DIRTY: u8 = 1 << 2;
/// A vCPU waited for it before it was filled.
pub(super) const AWAITED: u8 = 1 << 3;
/// The frame was filled while no vCPU waited for it.
pub(super) const AHEAD: u8 = 1 << 4;
/// The guest gave it back.
pub(super) const GIVEN_BACK: u8 = 1 << 5;
/// A call is filling or emptying the frame.
pub(super) const BUSY: u8 = 1 << 6;

/// One byte of state per frame. Creation is fast for any number of frames.
pub(super) struct FrameBits(LazyTable<AtomicU8>);

impl FrameBits {
    /// All frames empty.
    pub(super) fn new(frames: u32) -> Self {
        Self(LazyTable::new(frames as usize))
    }

    /// Number of frames.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// The bits of a frame; none for one outside the memory.
    pub(super) fn get(&self, frame: FrameIndex) -> u8 {
        self.0.made(frame.as_usize()).map_or(0, |bits| bits.load(Ordering::Acquire))
    }

    /// Sets bits; returns the previous ones.
    pub(super) fn set(&self, frame: FrameIndex, bits: u8) -> u8 {
        self.0.get(frame.as_usize()).map_or(0, |b| b.fetch_or(bits, Ordering::AcqRel))
    }

    /// Clears bits; returns the previous ones.
    pub(super) fn clear(&self, frame: FrameIndex, bits: u8) -> u8 {
        self.0.made(frame.as_usize()).map_or(0, |b| b.fetch_and(!bits, Ordering::AcqRel))
    }
}
