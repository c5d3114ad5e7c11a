//! Baseline policies that ignore colors.

use super::{Fault, Planner, PrefetchPolicy};
use crate::addr::FrameIndex;

/// Fetches only the faulting frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand;

impl PrefetchPolicy for Demand {
    fn name(&self) -> &str {
        "demand"
    }

    fn fault(&mut self, _: &Fault, _: &mut Planner<'_>) {}
}

/// Position of a blind window relative to the faulting frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Window {
    Next,
    Aligned,
}

/// Fetches neighbors by frame number.
#[derive(Clone, Debug)]
pub struct Blind {
    name: String,
    window: Window,
    size: u32,
}

impl Blind {
    /// The next `size` frames.
    #[must_use]
    pub fn next(size: u32) -> Self {
        Self { name: format!("blind-next-{size}"), window: Window::Next, size }
    }

    /// The aligned block of `size` frames around the fault, in order; a size of 0 counts as 1.
    #[must_use]
    pub fn aligned(size: u32) -> Self {
        let size = size.max(1);
        Self { name: format!("blind-aligned-{size}"), window: Window::Aligned, size }
    }
}

impl PrefetchPolicy for Blind {
    fn name(&self) -> &str {
        &self.name
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        let at = fault.frame.0;
        let first = match self.window {
            Window::Next => at.saturating_add(1),
            Window::Aligned => at - at % self.size,
        };
        // A window may be larger than the guest.
        let end = first.saturating_add(self.size).min(planner.locality().frames());
        for frame in first..end {
            if planner.room() == 0 {
                break;
            }
            planner.fetch(FrameIndex(frame));
        }
    }
}
