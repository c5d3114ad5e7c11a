//! Statistics of a mock memory.

use super::frame_bits::{AHEAD, AWAITED, TOUCHED};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Statistics of a mock memory. Values count frames unless stated otherwise.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        #[non_exhaustive]
        pub struct MemoryStatistics {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same as atomic counters.
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
    /// Reported faults, one per vCPU and touch.
    faults,
    /// Touches that had to wait.
    stalls,
    /// Total time in nanoseconds that vCPUs waited for frames.
    stalled_ns,
    /// Longest wait in nanoseconds.
    longest_stall_ns,
    /// Filled with bytes.
    placed,
    /// Filled with zeros.
    zeroed,
    /// Filled while no vCPU waited.
    filled_ahead,
    /// Filled ahead, and touched later.
    used,
    /// Touched, counted once after each filling.
    needed,
    /// Touched without a wait by any vCPU.
    covered,
    /// Emptied, for any reason.
    emptied,
    /// Given back by the guest.
    given_back,
    /// Evicted untouched.
    taken_back,
    /// Calls that woke a frame's waiters without filling it.
    wakes,
    /// Calls that tried to fill a frame that was filled already.
    already_there,
    /// Calls that could not fill a frame because frames were being given back.
    again,
    /// Misuse: calls for frames outside the memory.
    outside,
    /// Misuse: calls that filled a frame while another call was filling it.
    collisions,
    /// Misuse: frames given back by the guest that were filled with bytes other than zeros.
    brought_back,
}

impl Counters {
    /// Counts a touch of a frame that had these bits before.
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

    /// Counts a vCPU's wait for a frame.
    pub(super) fn stalled(&self, stall: Duration) {
        let ns = u64::try_from(stall.as_nanos()).unwrap_or(u64::MAX);
        self.stalls.fetch_add(1, Relaxed);
        self.stalled_ns.fetch_add(ns, Relaxed);
        self.longest_stall_ns.fetch_max(ns, Relaxed);
    }

    /// Counts a filled frame.
    pub(super) fn filled(&self, with_zeros: bool, ahead: bool) {
        let filled = if with_zeros { &self.zeroed } else { &self.placed };
        filled.fetch_add(1, Relaxed);
        if ahead {
            self.filled_ahead.fetch_add(1, Relaxed);
        }
    }
}

impl MemoryStatistics {
    /// Frames that are filled now.
    #[must_use]
    pub fn present(&self) -> u64 {
        (self.placed + self.zeroed).saturating_sub(self.emptied)
    }

    /// Mean wait of a vCPU for a frame; zero if there were no waits.
    #[must_use]
    pub fn mean_stall(&self) -> Duration {
        Duration::from_nanos(self.stalled_ns.checked_div(self.stalls).unwrap_or(0))
    }

    /// Longest wait of a vCPU for a frame; zero if there were no waits.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        Duration::from_nanos(self.longest_stall_ns)
    }

    /// Share of the needed frames that were filled before the touch; 1 if none was needed.
    #[must_use]
    pub fn coverage(&self) -> f64 {
        ratio(self.covered, self.needed)
    }

    /// Share of the frames filled ahead that were touched; 1 if none was filled ahead.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        ratio(self.used, self.filled_ahead)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a memory has fewer than 2^32 frames")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}
