//! Footprints of a clone over time.

use super::ByColor;
use std::time::Duration;

/// A clone's footprint at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FootprintSample {
    /// Time by the clone's clock.
    pub at: Duration,
    /// Frames by color.
    pub frames: ByColor,
}

/// Footprints over time, in a bounded number of samples.
///
/// When the history is full, it drops every second sample and doubles the interval. So the samples
/// cover all of the time about evenly, and there are between capacity/2 and capacity of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FootprintHistory {
    samples: Vec<FootprintSample>,
    /// The newest sample offered, kept or not.
    latest: Option<FootprintSample>,
    capacity: usize,
    interval: Duration,
}

impl FootprintHistory {
    /// An empty history of up to `capacity` samples (at least 2), at first no closer than
    /// `interval`.
    #[must_use]
    pub(crate) fn new(capacity: usize, interval: Duration) -> Self {
        // A zero interval would stay zero when doubled.
        let interval = interval.max(Duration::from_nanos(1));
        Self { samples: Vec::new(), latest: None, capacity: capacity.max(2), interval }
    }

    /// Time of the next sample to keep; earlier samples are dropped.
    #[must_use]
    pub(crate) fn due(&self) -> Duration {
        self.samples.last().map_or(Duration::ZERO, |last| last.at.saturating_add(self.interval))
    }

    /// Offers a sample. A sample older than the last one is ignored.
    pub(crate) fn record(&mut self, at: Duration, frames: ByColor) {
        if self.latest.is_some_and(|latest| at < latest.at) {
            return;
        }
        let sample = FootprintSample { at, frames };
        self.latest = Some(sample);
        if at < self.due() {
            return;
        }
        if self.samples.len() >= self.capacity {
            let mut is_odd = true;
            self.samples.retain(|_| {
                is_odd = !is_odd;
                !is_odd
            });
            self.interval = self.interval.saturating_mul(2);
            if at < self.due() {
                return;
            }
        }
        self.samples.push(sample);
    }

    /// The samples by time, the newest one offered included: at most capacity + 1.
    pub(crate) fn samples(&self) -> impl Iterator<Item = FootprintSample> + '_ {
        let last = self.samples.last().map(|sample| sample.at);
        let newer = self.latest.filter(|latest| Some(latest.at) > last);
        self.samples.iter().copied().chain(newer)
    }

    /// Minimum time between two samples.
    #[cfg(test)]
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }
}

impl Default for FootprintHistory {
    /// 256 samples, at first no closer than a millisecond: 24 KiB.
    fn default() -> Self {
        Self::new(256, Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_history_thins_out() {
        let mut history = FootprintHistory::new(4, Duration::from_secs(1));
        let mut frames = ByColor::default();
        for second in 0..100_u32 {
            frames.0[3] = second;
            history.record(Duration::from_secs(second.into()), frames);
        }
        let seconds: Vec<_> = history.samples().map(|s| (s.at.as_secs(), s.frames.0[3])).collect();
        assert_eq!(seconds, [(0, 0), (32, 32), (64, 64), (96, 96), (99, 99)]);
        assert_eq!(history.interval(), Duration::from_secs(32));
        history.record(Duration::from_secs(3), frames);
        assert_eq!(history.samples().count(), 5, "time does not go back");
    }

    proptest! {
        #[test]
        fn histories_are_bounded_and_cover_all(
            capacity in 0usize..20,
            steps in prop::collection::vec(0u64..50, 1..400),
        ) {
            let mut history = FootprintHistory::new(capacity, Duration::from_millis(3));
            let mut at = Duration::ZERO;
            for step in steps {
                at += Duration::from_millis(step);
                history.record(at, ByColor::default());
                let samples: Vec<_> = history.samples().map(|s| s.at).collect();
                prop_assert!(samples.len() <= capacity.max(2) + 1);
                prop_assert!(samples.is_sorted_by(|a, b| a < b));
                prop_assert_eq!(samples.last(), Some(&at));
                let kept = &samples[..samples.len() - 1];
                prop_assert!(kept.windows(2).all(|w| w[1] - w[0] >= history.interval()));
            }
        }
    }
}
