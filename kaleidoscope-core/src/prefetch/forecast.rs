//! What clones will write, learned from what others wrote.

use crate::addr::FrameIndex;
use std::collections::BTreeMap;
use std::ops::Range;

/// Which frames a clone that shares its parent's memory will write soon: those that most machines
/// wrote which began where it begins, its siblings and the parent itself since the freeze.
///
/// A frame that is copied before it is written costs a copy, and spares the guest the wait for one;
/// a frame that is copied and not written costs memory too. So a frame is worth copying when it is
/// written more often than not. Where nobody has written anything nothing is: a clone then is as if
/// there were no forecast.
#[derive(Clone, Debug, Default)]
pub struct WriteForecast {
    /// Machines that were looked at.
    seen: u32,
    /// How many of them wrote a frame.
    writers: BTreeMap<FrameIndex, u32>,
}

impl WriteForecast {
    /// Nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns what a machine wrote in the time that the forecast is for: ranges of frame indices
    /// that do not overlap. Takes time and memory in proportion to the frames.
    pub fn learn(&mut self, written: &[Range<u32>]) {
        self.seen = self.seen.saturating_add(1);
        for frame in written.iter().cloned().flatten() {
            let writers = self.writers.entry(FrameIndex(frame)).or_default();
            *writers = writers.saturating_add(1);
        }
    }

    /// Machines that were looked at.
    #[must_use]
    pub fn seen(&self) -> u32 {
        self.seen
    }

    /// The frames that more than half of the machines wrote, `most` at most: sorted ranges that do
    /// not touch. Those that more machines wrote are preferred.
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

/// Ascending frames as ranges that do not touch.
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
    fn what_most_wrote_is_expected() {
        let mut forecast = WriteForecast::new();
        assert!(forecast.frames(100).is_empty(), "nobody wrote anything");
        forecast.learn(&[3..5, 9..10]);
        assert_eq!(forecast.frames(100), [3..5, 9..10]);
        forecast.learn(&[3..4, 5..6]);
        assert_eq!(forecast.frames(100), [3..4], "half of them is not most");
        forecast.learn(&[4..6]);
        assert_eq!(forecast.frames(100), [3..6]);
        forecast.learn(&[]);
        forecast.learn(&[]);
        assert!(forecast.frames(100).is_empty());
        assert_eq!(forecast.seen(), 5);
    }

    #[test]
    fn a_limit_keeps_what_is_likeliest() {
        let mut forecast = WriteForecast::new();
        forecast.learn(&[0..4, 8..9]);
        forecast.learn(&[0..4, 8..9]);
        forecast.learn(&[2..3, 8..9]);
        assert_eq!(forecast.frames(2), [2..3, 8..9]);
        assert_eq!(forecast.frames(3), [0..1, 2..3, 8..9]);
        assert_eq!(forecast.frames(0), []);
    }
}
