//! What a clone's memory has cost and saved, by color, live and at the end.

use crate::color::Color;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
// Nothing is synchronized through counters: a model checker need not try their interleavings.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest stall that is told from longer ones.
const LONGEST_STALL: Duration = Duration::from_secs(3600);

/// What is counted for each color, in frames unless it says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Touches that had to wait for the parent, because nobody had asked for the frame.
    pub faults: u64,
    /// Touches that had to wait for a frame which was on its way.
    pub late: u64,
    /// Touches that were answered with zeros here.
    pub zero_faults: u64,
    /// Touches that were answered from staged pages.
    pub staged_faults: u64,
    /// Frames that came because they were touched.
    pub fetched: u64,
    /// Frames that came because a plan asked for them.
    pub prefetched: u64,
    /// Frames that came to fill the clone.
    pub filled: u64,
    /// Frames that were on this host already: found there when they were wanted, for whatever
    /// reason, or shown to the clone from the start.
    pub local_cache: u64,
    /// Frames that were filled with zeros ahead of any touch.
    pub zeroed_ahead: u64,
    /// Prefetched frames that are known to have been touched.
    pub used: u64,
    /// Prefetched frames that were dropped untouched.
    pub unused: u64,
    /// Frames that came twice, or too late to be needed, and were dropped.
    pub dropped: u64,
    /// Nanoseconds that touches have waited for frames, all vCPUs together.
    pub stalled_ns: u64,
    /// Frames in the clone's memory now, without those that are shown to it from the start.
    pub resident: u64,
}

macro_rules! counters {
    ($($field:ident => $variant:ident),+ $(,)?) => {
        /// What is counted.
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
                // Two counters of one moment may have been read at two: nothing here may overflow by a difference.
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
    /// Payload of pages that were placed or staged, in frames that were not zero.
    moved: AtomicU64,
    stalls: Mutex<Option<Histogram<u32>>>,
}

impl Counters {
    pub(crate) fn new() -> Self {
        let longest = u64::try_from(LONGEST_STALL.as_nanos()).unwrap_or(u64::MAX);
        // Two significant digits; without memory for it, stalls are counted but not told apart.
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

    /// A touch of a frame of this color has waited.
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

/// A clone's counters at one moment. Taken while it runs, numbers that belong together may differ
/// by what happened between reading the first and the last.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Frames of the clone.
    pub frames: u32,
    /// Counts for every color, in the order of [`Color::ALL`].
    pub by_color: Vec<(Color, Counts)>,
    /// Frames that came with bytes (pages of zeros come without).
    pub moved: u64,
    stalls: Option<Histogram<u32>>,
    /// Part of the prefetched frames whose use is known; 0 when none is.
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

    /// Bytes of pages that were moved.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.moved.saturating_mul(crate::addr::FRAME_SIZE)
    }

    /// The stall below which this part (0 to 1) of all stalls lie, to about 1 %; `None` when there
    /// was none.
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

    /// Mean of all stalls, zero when there was none.
    #[must_use]
    pub fn mean_stall(&self) -> Duration {
        let mean = self.stalls.as_ref().filter(|s| !s.is_empty()).map_or(0.0, Histogram::mean);
        Duration::from_secs_f64(mean.max(0.0) / 1e9)
    }

    /// Prefetched frames that were used, as far as feedback tells: exact when all are staged, an
    /// estimate when some are.
    fn used(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts of frames are below 2^53")]
        let used = self.total().used as f64;
        (self.sampled > 0.0).then(|| used / self.sampled)
    }

    /// Part of the prefetched frames that were used, or `None` when nothing was prefetched or
    /// feedback is off.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts of frames are below 2^53")]
        let prefetched = self.total().prefetched as f64;
        let used = self.used()?;
        (prefetched > 0.0).then(|| (used / prefetched).min(1.0))
    }

    /// Part of the needed frames that were there before they were touched, or `None` when feedback
    /// is off or nothing was touched. Frames filled with zeros do not count.
    #[must_use]
    pub fn coverage(&self) -> Option<f64> {
        let total = self.total();
        #[expect(clippy::cast_precision_loss, reason = "counts of frames are below 2^53")]
        let missed = (total.faults + total.late) as f64;
        let used = self.used()?;
        (used + missed > 0.0).then(|| used / (used + missed))
    }

    /// Prefetched frames that were not used so far, or `None` when feedback is off.
    #[must_use]
    pub fn waste(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts of frames are below 2^53")]
        let prefetched = self.total().prefetched as f64;
        self.used().map(|used| (prefetched - used).max(0.0))
    }
}
