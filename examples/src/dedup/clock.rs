//! CPU time of this process.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// CPU time of all threads so far.
pub(super) fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}
