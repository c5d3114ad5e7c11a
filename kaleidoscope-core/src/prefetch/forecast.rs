//! Forecast of the frames that clones will write, learned from the writes of others.

use crate::addr::FrameIndex;
use std::collections::BTreeMap;
use std::ops::Range;

/// Predicts which frames a clone that shares its parent's memory will write soon: those that most
/// machines with the same origin wrote, i.e. its siblings, and the parent itself since the freeze.
///
/// Copying a frame before the write costs a copy, and saves the guest the wait for a fault. A frame
/// that is copied and never written costs memory as well. So a frame is worth copying if it is
/// written more often than not. Without any known writes the forecast is empty, and the clone
/// behaves as without a forecast.
#[derive(Clone, Debug, Default)]
pub struct WriteForecast {
    /// Machines learned from.
    seen: u32,
    /// Number of machines that wrote each frame.
    writers: BTreeMap<FrameIndex, u32>,
}

impl WriteForecast {
    /// An empty forecast.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the writes of one machine within the forecast's time span, as frame ranges that do not
    /// overlap. Takes time and memory in proportion to the number of frames.
    pub fn learn(&mut self, written: &[Range<u32>]) {
        self.seen = self.seen.saturating_add(1);
        for frame in written.iter().cloned().flatten() {
            let writers = self.writers.entry(FrameIndex(frame)).or_default();
            *writers = writers.saturating_add(1);
        }
    }

    /// Number of machines learned from.
    #[must_use]
    pub fn seen(&self) -> u32 {
        self.seen
    }

    /// The frames that more than half of the machines wrote, at most `most` frames: sorted ranges
    /// that do not touch. Frames that more machines wrote are preferred.
    #[must_use]
    pub fn frames(&self, most: u32) -> Vec<Range<u32>> {
        let likely = self.writers.iter().filter(|(_, writers)| **writers > self.seen / 2);
        let mut likely: Vec<_> = likely.map(|(frame, writers)| (*writers, frame.0)).collect();
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if likely.len() > most {
            likely.sort_unstable_by_key(|(writers, frame)| (std::cmp::Reverse(*writers), *frame));
            likely.truncate(most);
            likely.sort_unstable_by_key(|(_, frame)| *frame);
        }
        runs(likely.into_iter().map(|(_, frame)| frame))
    }
}

/// Converts ascending frames to ranges that do not touch.
pub(super) fn runs(frames: impl IntoIterator<Item = u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for frame in frames {
        match runs.last_mut().filter(|run| run.end == frame) {
            Some(run) => run.end = frame.saturating_add(1),
            None => runs.push(frame..frame.saturating_add(1)),
        }
    }
    runs
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "sets of frames")]
mod tests {
    use super::*;

    #[test]
    fn frames_that_most_machines_wrote_are_predicted() {
        let mut forecast = WriteForecast::new();
        assert!(forecast.frames(100).is_empty(), "no machine was learned from");
        forecast.learn(&[3..5, 9..10]);
        assert_eq!(forecast.frames(100), [3..5, 9..10]);
        forecast.learn(&[3..4, 5..6]);
        assert_eq!(forecast.frames(100), [3..4], "half of the machines is not a majority");
        forecast.learn(&[4..6]);
        assert_eq!(forecast.frames(100), [3..6]);
        forecast.learn(&[]);
        forecast.learn(&[]);
        assert!(forecast.frames(100).is_empty());
        assert_eq!(forecast.seen(), 5);
    }

    #[test]
    fn a_limit_keeps_the_likeliest_frames() {
        let mut forecast = WriteForecast::new();
        forecast.learn(&[0..4, 8..9]);
        forecast.learn(&[0..4, 8..9]);
        forecast.learn(&[2..3, 8..9]);
        assert_eq!(forecast.frames(2), [2..3, 8..9]);
        assert_eq!(forecast.frames(3), [0..1, 2..3, 8..9]);
        assert_eq!(forecast.frames(0), []);
    }
}
