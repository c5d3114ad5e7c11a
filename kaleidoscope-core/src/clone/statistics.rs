//! Statistics of a clone's memory, by color.

use crate::color::Color;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
// `std`'s atomics, because counters synchronize nothing: loom need not explore their
// interleavings.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest stall that the histogram tells from longer ones.
const LONGEST_STALL: Duration = Duration::from_secs(3600);

/// Counters of one color, in frames unless a field states another unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Touches that waited for the source, because the frame had not been requested.
    pub faults: u64,
    /// Touches that waited for a frame already in flight.
    pub late: u64,
    /// Touches that were answered with zeros on this host.
    pub zero_faults: u64,
    /// Touches that were answered from staged pages.
    pub staged_faults: u64,
    /// Frames that were fetched because they were touched.
    pub fetched: u64,
    /// Frames that were fetched because the policy planned them.
    pub prefetched: u64,
    /// Frames that were fetched by the background fill.
    pub filled: u64,
    /// Frames that were already on this host: found in the local cache when they were requested for
    /// any reason, or mapped from the start.
    pub local_cache: u64,
    /// Frames that were filled with zeros ahead of any touch.
    pub zeroed_ahead: u64,
    /// Prefetched frames that are known to have been touched.
    pub used: u64,
    /// Prefetched frames that were dropped untouched.
    pub unused: u64,
    /// Frames that arrived twice, or when they were no longer needed, and were dropped.
    pub dropped: u64,
    /// Nanoseconds that touches have waited for frames, summed over all vCPUs.
    pub stalled_ns: u64,
    /// Frames in the clone's memory now, without those that are mapped from the start.
    pub resident: u64,
}

macro_rules! counters {
    ($($field:ident => $variant:ident),+ $(,)?) => {
        /// A counter.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Count {
            $($variant),+
        }

        const KINDS: usize = [$(Count::$variant),+].len();

        impl Counts {
            fn read(kinds: &[AtomicU64; KINDS]) -> Self {
                let get = |count: Count| {
                    kinds.get(count as usize).map_or(0, |n| n.load(Ordering::Relaxed))
                };
                Self { $($field: get(Count::$variant),)+ resident: 0 }
            }
        }

        impl std::ops::AddAssign<&Counts> for Counts {
            fn add_assign(&mut self, other: &Counts) {
                // The counters are not read at one instant, so their sums may be inconsistent.
                $(self.$field = self.$field.saturating_add(other.$field);)+
                self.resident = self.resident.saturating_add(other.resident);
            }
        }
    };
}

counters! {
    faults => Faults,
    late => Late,
    zero_faults => ZeroFaults,
    staged_faults => StagedFaults,
    fetched => Fetched,
    prefetched => Prefetched,
    filled => Filled,
    local_cache => LocalCache,
    zeroed_ahead => ZeroedAhead,
    used => Used,
    unused => Unused,
    dropped => Dropped,
    stalled_ns => StalledNanos,
}

const COLORS: usize = Color::ALL.len();

/// The engine's counters.
#[derive(Debug)]
pub(crate) struct Counters {
    colors: [[AtomicU64; KINDS]; COLORS],
    /// Non-zero frames from the source that were installed or staged.
    moved: AtomicU64,
    stalls: Mutex<Option<Histogram<u32>>>,
}

impl Counters {
    pub(crate) fn new() -> Self {
        let longest = u64::try_from(LONGEST_STALL.as_nanos()).unwrap_or(u64::MAX);
        // Two significant digits. Without memory for the histogram, only the stalled time is
        // counted.
        let stalls = Histogram::new_with_bounds(1, longest, 2).ok();
        Self {
            colors: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            moved: AtomicU64::new(0),
            stalls: Mutex::new(stalls),
        }
    }

    fn counter(&self, color: Color, count: Count) -> Option<&AtomicU64> {
        self.colors.get(color as usize)?.get(count as usize)
    }

    pub(crate) fn add(&self, color: Color, count: Count) {
        self.add_many(color, count, 1);
    }

    fn add_many(&self, color: Color, count: Count, more: u64) {
        if let Some(counter) = self.counter(color, count) {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(crate) fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Records a touch of a frame of this color that waited for `stall`.
    pub(crate) fn stalled(&self, color: Color, stall: Duration) {
        let nanos = u64::try_from(stall.as_nanos()).unwrap_or(u64::MAX);
        self.add_many(color, Count::StalledNanos, nanos);
        if let Some(stalls) = self.stalls.lock().as_mut() {
            stalls.saturating_record(nanos);
        }
    }

    pub(crate) fn read(&self, frames: u32, sampled: f64) -> Statistics {
        let by_color = Color::ALL
            .iter()
            .zip(&self.colors)
            .map(|(color, kinds)| (*color, Counts::read(kinds)))
            .collect();
        let stalls = self.stalls.lock().clone();
        let moved = self.moved.load(Ordering::Relaxed);
        Statistics { frames, by_color, moved, stalls, sampled }
    }
}

/// A clone's counters. They are read one after another while the clone runs, so that related
/// counters may be inconsistent by what happened meanwhile.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Number of the clone's frames.
    pub frames: u32,
    /// Counts for every color, in the order of [`Color::ALL`].
    pub by_color: Vec<(Color, Counts)>,
    /// Frames whose bytes were transferred. Zero pages are transferred without bytes.
    pub moved: u64,
    stalls: Option<Histogram<u32>>,
    /// Fraction of the prefetched frames whose use is observed; 0 without feedback.
    sampled: f64,
}

impl Statistics {
    /// Counts of all colors together.
    #[must_use]
    pub fn total(&self) -> Counts {
        let mut total = Counts::default();
        for (_, counts) in &self.by_color {
            total += counts;
        }
        total
    }

    /// Bytes of page contents that were transferred, without protocol overhead.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.moved.saturating_mul(crate::addr::FRAME_SIZE)
    }

    /// The quantile `part` (0 to 1) of all stalls, to about 1 %; `None` when there was no stall.
    #[must_use]
    pub fn stall(&self, part: f64) -> Option<Duration> {
        let stalls = self.stalls.as_ref().filter(|s| !s.is_empty())?;
        Some(Duration::from_nanos(stalls.value_at_quantile(part)))
    }

    /// Number of stalls.
    #[must_use]
    pub fn stalls(&self) -> u64 {
        self.stalls.as_ref().map_or(0, Histogram::len)
    }

    /// Mean of all stalls; zero when there was no stall.
    #[must_use]
    pub fn mean_stall(&self) -> Duration {
        let mean = self.stalls.as_ref().filter(|s| !s.is_empty()).map_or(0.0, Histogram::mean);
        Duration::from_secs_f64(mean.max(0.0) / 1e9)
    }

    /// Prefetched frames that were used: exact when all are staged, an estimate when a sample is,
    /// `None` without feedback.
    fn used(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts of frames are below 2^53")]
        let used = self.total().used as f64;
        (self.sampled > 0.0).then(|| used / self.sampled)
    }

    /// Fraction of the prefetched frames that were used (0 to 1), or `None` when nothing was
    /// prefetched or feedback is off.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts of frames are below 2^53")]
        let prefetched = self.total().prefetched as f64;
        let used = self.used()?;
        (prefetched > 0.0).then(|| (used / prefetched).min(1.0))
    }

    /// Fraction of the needed frames that arrived before they were touched (0 to 1), or `None` when
    /// feedback is off or nothing was touched. Frames filled with zeros do not count.
    #[must_use]
    pub fn coverage(&self) -> Option<f64> {
        let total = self.total();
        #[expect(clippy::cast_precision_loss, reason = "counts of frames are below 2^53")]
        let missed = (total.faults + total.late) as f64;
        let used = self.used()?;
        (used + missed > 0.0).then(|| used / (used + missed))
    }

    /// Prefetched frames that have not been used so far, or `None` when feedback is off.
    #[must_use]
    pub fn waste(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts of frames are below 2^53")]
        let prefetched = self.total().prefetched as f64;
        self.used().map(|used| (prefetched - used).max(0.0))
    }
}
