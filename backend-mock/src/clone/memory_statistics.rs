//! What happened to a mock memory.

use super::frame_bits::{AHEAD, AWAITED, TOUCHED};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What happened to a mock memory. All count frames, unless they say otherwise.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        #[non_exhaustive]
        pub struct MemoryStatistics {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same while it happens.
        #[derive(Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn read(&self) -> MemoryStatistics {
                MemoryStatistics { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Faults that were reported, one for each vCPU and touch.
    faults,
    /// Touches that had to wait.
    stalls,
    /// Nanoseconds that vCPUs waited for frames, all together.
    stalled_ns,
    /// Nanoseconds of the longest such wait.
    longest_stall_ns,
    /// Filled with bytes.
    placed,
    /// Filled with zeros.
    zeroed,
    /// Filled while nobody waited.
    filled_ahead,
    /// Of those, touched later.
    used,
    /// Touched, counted once after each filling.
    needed,
    /// Of those, without any vCPU having waited.
    covered,
    /// Emptied, for whatever reason.
    emptied,
    /// Given back by the guest.
    given_back,
    /// Taken back untouched.
    taken_back,
    /// Calls that woke a frame's waiters without filling it.
    wakes,
    /// Calls that tried to fill a frame which had bytes.
    already_there,
    /// Calls that could not fill a frame because others were being given back.
    again,
    /// Misuse: calls for frames outside the memory.
    outside,
    /// Misuse: calls that filled a frame while another call did so.
    collisions,
    /// Misuse: frames that the guest gave back, filled with bytes other than zeros.
    brought_back,
}

impl Counters {
    /// A frame is touched that had these bits.
    pub(super) fn touched(&self, before: u8) {
        if before & TOUCHED == 0 {
            self.needed.fetch_add(1, Relaxed);
            if before & AWAITED == 0 {
                self.covered.fetch_add(1, Relaxed);
            }
            if before & AHEAD != 0 {
                self.used.fetch_add(1, Relaxed);
            }
        }
    }

    /// A vCPU had to wait for a frame.
    pub(super) fn stalled(&self, stall: Duration) {
        let ns = u64::try_from(stall.as_nanos()).unwrap_or(u64::MAX);
        self.stalls.fetch_add(1, Relaxed);
        self.stalled_ns.fetch_add(ns, Relaxed);
        self.longest_stall_ns.fetch_max(ns, Relaxed);
    }

    /// A frame is filled.
    pub(super) fn filled(&self, with_zeros: bool, ahead: bool) {
        let filled = if with_zeros { &self.zeroed } else { &self.placed };
        filled.fetch_add(1, Relaxed);
        if ahead {
            self.filled_ahead.fetch_add(1, Relaxed);
        }
    }
}

impl MemoryStatistics {
    /// Frames that have bytes now.
    #[must_use]
    pub fn present(&self) -> u64 {
        (self.placed + self.zeroed).saturating_sub(self.emptied)
    }

    /// The mean wait of a vCPU for a frame; zero when none waited.
    #[must_use]
    pub fn mean_stall(&self) -> Duration {
        Duration::from_nanos(self.stalled_ns.checked_div(self.stalls).unwrap_or(0))
    }

    /// The longest wait of a vCPU for a frame; zero when none waited.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        Duration::from_nanos(self.longest_stall_ns)
    }

    /// Share of the needed frames that were there before the touch; 1 when none was needed.
    #[must_use]
    pub fn coverage(&self) -> f64 {
        ratio(self.covered, self.needed)
    }

    /// Share of the frames filled ahead that were touched; 1 when none was filled ahead.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        ratio(self.used, self.filled_ahead)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a memory has fewer than 2^32 frames")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}
