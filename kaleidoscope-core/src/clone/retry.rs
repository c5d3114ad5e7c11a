//! Retries with growing pauses and a timeout.

use super::ports::Clock;
use crate::sync::wait;
use std::time::Duration;

/// Pauses that spin and keep the processor, because most conditions become true within
/// microseconds.
const SPINS: u32 = if cfg!(loom) { 1 } else { 8 };

/// Pauses after those that yield the processor.
const YIELDS: u32 = if cfg!(loom) { 1 } else { 32 };

/// The first sleep after that, in microseconds. Each sleep is twice as long as the one before.
const FIRST_SLEEP: u64 = 8;

/// The longest sleep.
const LONGEST_SLEEP: Duration = Duration::from_millis(1);

/// Retries of an operation that will succeed soon. Each failed attempt is followed by a
/// [pause](Self::pause). The pauses grow from a few cycles to a millisecond, until the timeout.
///
/// Elapsed time is the larger of what the [`Clock`] shows and what was slept here, so that a clock
/// that stands still does not make the retries endless.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Start on the clock; `None` until the first pause.
    start: Option<Duration>,
    timeout: Duration,
    pauses: u32,
    slept: Duration,
}

impl Retry {
    /// Retries for `timeout`, counted from the first pause.
    #[must_use]
    pub const fn new(timeout: Duration) -> Self {
        Self { start: None, timeout, pauses: 0, slept: Duration::ZERO }
    }

    /// Retries for `timeout`, counted from `start` on the clock.
    #[must_use]
    pub const fn since(start: Duration, timeout: Duration) -> Self {
        Self { start: Some(start), timeout, pauses: 0, slept: Duration::ZERO }
    }

    /// Retries without a timeout, for a service that polls while it has nothing to do.
    #[must_use]
    pub const fn endless() -> Self {
        Self::new(Duration::MAX)
    }

    /// Pauses before the next attempt. Returns `false` at once when the timeout has passed.
    #[must_use]
    pub fn pause(&mut self, clock: &dyn Clock) -> bool {
        let now = clock.now();
        let start = *self.start.get_or_insert(now);
        let elapsed = now.saturating_sub(start).max(self.slept);
        let left = self.timeout.saturating_sub(elapsed);
        if left.is_zero() {
            return false;
        }
        let pause = self.pauses;
        self.pauses = pause.saturating_add(1);
        match pause.checked_sub(SPINS) {
            None => wait::spin(1 << pause),
            Some(yields) if yields < YIELDS => wait::yield_now(),
            Some(more) => {
                let doubled = FIRST_SLEEP.saturating_mul(1 << (more - YIELDS).min(20));
                let sleep = Duration::from_micros(doubled).min(LONGEST_SLEEP).min(left);
                wait::sleep(sleep);
                self.slept = self.slept.saturating_add(sleep);
            }
        }
        true
    }

    /// Records a success: the next pause is short again, and the timeout counts from it.
    pub const fn reset(&mut self) {
        *self = Self::new(self.timeout);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::clone::ports::SystemClock;
    use parking_lot::Mutex;

    /// A clock that advances by the second field with each reading.
    struct Ticking(Mutex<Duration>, Duration);

    impl Clock for Ticking {
        fn now(&self) -> Duration {
            let mut now = self.0.lock();
            *now += self.1;
            *now
        }
    }

    fn attempts(retry: &mut Retry, clock: &dyn Clock) -> u32 {
        let mut attempts = 1;
        while retry.pause(clock) {
            attempts += 1;
        }
        attempts
    }

    #[test]
    fn attempts_end_whatever_the_clock_does() {
        let timeout = Duration::from_millis(30);
        for tick in [0, 1, 1_000_000_000] {
            let clock = Ticking(Mutex::default(), Duration::from_nanos(tick));
            let mut retry = Retry::new(timeout);
            let attempts = attempts(&mut retry, &clock);
            // At most 40 without a sleep, 7 with growing sleeps, and then one per millisecond.
            assert!((1..=80).contains(&attempts), "{attempts} attempts with ticks of {tick} ns");
            assert!(!retry.pause(&clock), "the timeout has passed");
            retry.reset();
            assert_eq!(retry.pause(&clock), tick < 30_000_000 || attempts > 1);
        }
    }

    #[test]
    fn the_time_is_counted_from_when_it_is_said() {
        let clock = Ticking(Mutex::new(Duration::from_secs(60)), Duration::from_secs(1));
        let mut retry = Retry::since(Duration::from_secs(31), Duration::from_secs(30));
        assert!(!retry.pause(&clock), "30 seconds have passed");
        let mut retry = Retry::since(Duration::from_secs(33), Duration::from_secs(30));
        assert_eq!(attempts(&mut retry, &clock), 2);
        assert!(!Retry::new(Duration::ZERO).pause(&clock));
    }

    #[test]
    fn pauses_grow_and_leave_the_processor_to_others() {
        let (clock, mut retry) = (SystemClock::new(), Retry::endless());
        for _ in 0..SPINS + YIELDS {
            assert!(retry.pause(&clock));
        }
        assert_eq!(retry.slept, Duration::ZERO);
        let slept: Vec<_> = (0..10)
            .map(|_| {
                let before = retry.slept;
                assert!(retry.pause(&clock));
                (retry.slept - before).as_micros()
            })
            .collect();
        assert_eq!(slept, [8, 16, 32, 64, 128, 256, 512, 1000, 1000, 1000]);
        retry.reset();
        assert!(retry.pause(&clock) && retry.slept.is_zero());
    }
}
