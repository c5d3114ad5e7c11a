//! Trying again: for how long, and at what cost to others meanwhile.

use super::ports::Clock;
use crate::sync::wait;
use std::time::Duration;

/// Attempts after which a thread still has its processor: what it waits for takes microseconds as a
/// rule.
const SPINS: u32 = if cfg!(loom) { 1 } else { 8 };

/// Attempts after those between which it lets others run.
const YIELDS: u32 = if cfg!(loom) { 1 } else { 32 };

/// The first sleep after that, in microseconds; each is twice the one before.
const FIRST_SLEEP: u64 = 8;

/// The longest.
const LONGEST_SLEEP: Duration = Duration::from_millis(1);

/// Attempts at something that is not possible now, and will be soon: each is followed by a
/// [pause](Self::pause), the pauses grow from some cycles to a millisecond, and there are none any
/// more when the time for it is over.
///
/// Time is what a [`Clock`] says, and no less than was slept here: a clock that stands still does
/// not make attempts endless.
#[derive(Clone, Debug)]
pub struct Retry {
    /// On the clock; from the first pause on unless it is given.
    start: Option<Duration>,
    timeout: Duration,
    pauses: u32,
    slept: Duration,
}

impl Retry {
    /// Attempts for so long, from the first pause on.
    #[must_use]
    pub const fn new(timeout: Duration) -> Self {
        Self { start: None, timeout, pauses: 0, slept: Duration::ZERO }
    }

    /// Attempts for so long, from an instant on the clock on.
    #[must_use]
    pub const fn since(start: Duration, timeout: Duration) -> Self {
        Self { start: Some(start), timeout, pauses: 0, slept: Duration::ZERO }
    }

    /// Attempts without an end: for a service that has nothing to do, but looks again and again
    /// because of others.
    #[must_use]
    pub const fn endless() -> Self {
        Self::new(Duration::MAX)
    }

    /// Waits a little before the next attempt; `false`, at once, when there is no time for one.
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

    /// It was possible: the next pause is short again, and the time for it begins with it.
    pub const fn reset(&mut self) {
        *self = Self::new(self.timeout);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::clone::ports::SystemClock;
    use parking_lot::Mutex;

    /// Goes on by so much with each look.
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
            // At most: forty without a sleep, seven that grow, and then one for each millisecond.
            assert!((1..=80).contains(&attempts), "{attempts} attempts with ticks of {tick} ns");
            assert!(!retry.pause(&clock), "it is over");
            retry.reset();
            assert_eq!(retry.pause(&clock), tick < 30_000_000 || attempts > 1);
        }
    }

    #[test]
    fn the_time_is_counted_from_when_it_is_said() {
        let clock = Ticking(Mutex::new(Duration::from_secs(60)), Duration::from_secs(1));
        let mut retry = Retry::since(Duration::from_secs(31), Duration::from_secs(30));
        assert!(!retry.pause(&clock), "30 seconds are over");
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
