//! The oracle: a policy that knows the future accesses, as an upper bound.

use super::{Fault, Planner, PrefetchPolicy};
use crate::addr::FrameIndex;

/// Fetches the frames that a trace accesses, in the trace's order, from the start. No policy can
/// fetch fewer frames.
///
/// It does not serve clones; other policies are measured against it. Free frames are filled with
/// zeros before they are accessed.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Frames that will be accessed, in order.
    frames: Vec<FrameIndex>,
    /// How many of `frames` were planned or already present.
    next: usize,
}

impl Oracle {
    /// An oracle for a clone that accesses these frames in this order.
    #[must_use]
    pub fn new(frames: impl IntoIterator<Item = FrameIndex>) -> Self {
        Self { frames: frames.into_iter().collect(), next: 0 }
    }

    /// Plans as many of the next frames as fit. Each frame is considered once per replay.
    fn next(&mut self, planner: &mut Planner<'_>) {
        while planner.room() > 0
            && let Some(frame) = self.frames.get(self.next)
        {
            if !planner.zero(*frame) {
                planner.fetch_used(*frame);
            }
            self.next += 1;
        }
    }
}

impl PrefetchPolicy for Oracle {
    fn name(&self) -> &str {
        "oracle"
    }

    fn fault(&mut self, _: &Fault, planner: &mut Planner<'_>) {
        if !planner.answer_with_zeros() {
            self.next(planner);
        }
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        self.next(planner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::color::{Color, ColorMap, Frame};
    use crate::memory::MemoryLayout;
    use crate::prefetch::{Access, Answer, LocalityOrder, Plan, Presence};
    use std::sync::Arc;

    /// Frames below the limit are present.
    struct PresentBelow(u32);

    impl Presence for PresentBelow {
        fn is_absent(&self, frame: FrameIndex) -> bool {
            frame.0 >= self.0
        }
    }

    /// Eight frames; frame 5 is free.
    fn locality() -> Arc<LocalityOrder> {
        let layout = MemoryLayout::contiguous(8 * 4096).unwrap();
        let frames = (0..8).map(|i| Frame {
            color: if i == 5 { Color::Free } else { Color::Anonymous },
            ..Frame::default()
        });
        Arc::new(LocalityOrder::new(
            ColorMap::new(layout, Default::default(), frames, Vec::new()).unwrap(),
        ))
    }

    fn frames(numbers: &[u32]) -> Vec<FrameIndex> {
        numbers.iter().copied().map(FrameIndex).collect()
    }

    #[test]
    fn the_oracle_plans_each_frame_once() {
        let locality = locality();
        let mut oracle = Oracle::new(frames(&[7, 5, 3, 0, 6, 2]));
        let mut plan = Plan::new(Arc::clone(&locality), 2);
        let fault = |frame| Fault { frame, access: Access::Unknown, in_flight: false };

        let present = PresentBelow(1);
        oracle.fault(&fault(FrameIndex(7)), &mut plan.begin(&present, Some(FrameIndex(7))));
        assert_eq!(plan.fetch(), frames(&[3, 6]), "the faulting and present frames are left out");
        assert_eq!(plan.zero(), frames(&[5]));
        assert_eq!(plan.answer(), Answer::Fetch);

        oracle.fault(&fault(FrameIndex(5)), &mut plan.begin(&present, Some(FrameIndex(5))));
        assert_eq!((plan.answer(), plan.fetch()), (Answer::Zero, &[][..]));

        oracle.background(&mut plan.begin(&present, None));
        assert_eq!(plan.fetch(), frames(&[2]));
        oracle.background(&mut plan.begin(&present, None));
        assert_eq!(plan.fetch(), [], "no frame is fetched twice");
    }
}
