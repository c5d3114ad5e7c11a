//! The measurements of a replay.

use crate::addr::FRAME_SIZE;
use crate::color::Color;
use std::fmt;

/// The state of a clone at an instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sample {
    /// Microseconds since the clone was resumed, at the end of the last of the touches so far.
    pub at_us: u64,
    /// Frames that the clone has touched.
    pub touched: u32,
    /// Frames that take memory: fetched ones, including those in flight, and zero-filled ones once
    /// they are touched.
    pub resident: u32,
}

/// Results of a policy on a trace.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Metrics {
    /// Frames that the clone touched and that were not free at the freeze.
    pub needed: u32,
    /// Frames that the clone touched and that were free at the freeze.
    pub free_touched: u32,
    /// Touches of absent frames that needed a request to the parent.
    pub faults: u32,
    /// Touches of frames in flight: a wait, but no further transfer.
    pub late: u32,
    /// Touches of absent free frames that were answered with zeros locally.
    pub zero_faults: u32,
    /// Frames that a plan fetched, whether or not they arrived before the end of the trace.
    pub prefetched: u32,
    /// Prefetched frames that the clone needed, including late ones.
    pub used: u32,
    /// Free frames that were fetched, by a fault or by prefetch.
    pub free_transferred: u32,
    /// Needed frames that were present before they were touched.
    pub covered: u32,
    /// Frames fetched in total, by faults and by prefetch.
    pub transferred: u32,
    /// The wait of every fault, late touch and zero fault in microseconds, sorted.
    pub waits_us: Vec<f64>,
    /// Total microseconds waited by all vCPUs.
    pub stall_us: f64,
    /// Microseconds, rounded down, until 50, 90 and 99 percent of the needed frames, rounded up,
    /// were present. 0 if no frame was needed.
    pub working_set_us: [u64; 3],
    /// The clone over time: after every n-th touch and after the last, where n is the number of
    /// touches / 256, rounded up. At most 256.
    pub samples: Vec<Sample>,
    /// Frames that take memory at the end, by color in the order of [`Color::ALL`].
    pub footprint: [u32; Color::ALL.len()],
}

impl Metrics {
    /// Prefetched frames that the clone did not need.
    #[must_use]
    pub fn wasted(&self) -> u32 {
        self.prefetched.saturating_sub(self.used)
    }

    /// Frames that take memory at the end: fetched ones, and zero-filled ones that were touched.
    #[must_use]
    pub fn resident(&self) -> u32 {
        self.footprint.iter().sum()
    }

    /// Share of the needed frames that were present before they were touched; 1 if none was needed.
    #[must_use]
    pub fn coverage(&self) -> f64 {
        share(self.covered, self.needed)
    }

    /// Share of the prefetched frames that were needed; 1 if none was prefetched.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        share(self.used, self.prefetched)
    }

    /// Bytes of pages that were fetched.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.transferred) * FRAME_SIZE
    }

    /// Quantile of the waits in microseconds, 0 if there were none; `share` from 0 to 1.
    #[must_use]
    pub fn wait_us(&self, share: f64) -> f64 {
        let last = self.waits_us.len().saturating_sub(1);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index, clamped to the length"
        )]
        let at = (share.clamp(0.0, 1.0) * last as f64).round() as usize;
        self.waits_us.get(at.min(last)).copied().unwrap_or(0.0)
    }
}

/// One line: faults (requests to the parent), late touches, waste and waiting.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, late, prefetched, .. } = self;
        let (wasted, stall_ms) = (self.wasted(), self.stall_us / 1e3);
        write!(
            f,
            "{faults} faults, {late} late, {wasted} of {prefetched} prefetched frames wasted, \
             {stall_ms:.1} ms waited"
        )
    }
}

fn share(part: u32, whole: u32) -> f64 {
    if whole == 0 { 1.0 } else { f64::from(part) / f64::from(whole) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_one_line() {
        let metrics = Metrics {
            faults: 8,
            late: 1,
            prefetched: 9,
            used: 7,
            stall_us: 1300.0,
            ..Metrics::default()
        };
        let expected = "8 faults, 1 late, 2 of 9 prefetched frames wasted, 1.3 ms waited";
        assert_eq!(metrics.to_string(), expected);
    }
}
