//! Scripted failures.

use super::log::{Call, EntryId, Log};
use crate::Rng;
use kaleidoscope_core::addr::FrameIndex;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A failure to inject. A failure that does not apply to a kind of call has no effect on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// Any call: returns an error and does nothing.
    Fail,
    /// Any call that can return an error: this one and all later ones of the same port do.
    Dead,
    /// Any call: starts after this delay. A delivery: arrives after this delay; others overtake it.
    Delay(Duration),
    /// A request: not sent. A delivery or event: lost.
    Drop,
    /// A request, delivery or event: repeated.
    Twice,
    /// A delivery or event: others overtake it.
    Reorder,
    /// A request: requests a random frame as well, which is then delivered unasked. An event:
    /// preceded by a fault on a random frame, without a waiter.
    Unasked,
    /// A delivery: preceded by pages for frames that do not exist.
    Outside,
    /// A delivery: one byte is changed.
    Corrupt,
    /// A delivery: the source reports that it does not have the frame.
    Unavailable,
    /// A fill: returns [`TryAgain`](kaleidoscope_core::clone::ports::Installed::TryAgain). A queue
    /// under the same script then reports an empty removal event next.
    Again,
}

/// When a failure occurs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum When {
    /// At the call with this number, from 1.
    Nth(u64),
    /// At this call and all later ones.
    From(u64),
    /// At every n-th call.
    Every(u64),
    /// At random, in one of n calls on average.
    OneIn(u64),
}

/// Failures to inject, as a function of a seed and the order of the calls, and the [`Log`] of all
/// calls. Clones of a script share its state, so that one script drives all decorators of a clone.
///
/// ```
/// use kaleidoscope_mock::clone::{Call, Failure, Script, When};
/// let script = Script::new(7)
///     .on(Call::Request, When::Nth(3), Failure::Fail)
///     .on(Call::Deliver, When::OneIn(10), Failure::Twice);
/// ```
#[derive(Clone)]
pub struct Script {
    rules: Vec<(Call, When, Failure)>,
    state: Arc<Mutex<State>>,
    log: Log,
}

struct State {
    rng: Rng,
    calls: BTreeMap<Call, u64>,
    /// Fills that were refused with "try again", for which the queue has not reported an event yet.
    owed_events: u64,
}

/// The failures chosen for a call.
pub(super) struct Decision {
    pub(super) failures: Vec<Failure>,
    entry: EntryId,
}

impl Script {
    /// No failures; all calls are logged.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State { rng: Rng::new(seed), calls: BTreeMap::new(), owed_events: 0 };
        Self { rules: Vec::new(), state: Arc::new(Mutex::new(state)), log: Log::default() }
    }

    /// Adds a rule. Several rules may apply to the same call.
    #[must_use]
    pub fn on(mut self, call: Call, when: When, failure: Failure) -> Self {
        self.rules.push((call, when, failure));
        self
    }

    /// Replaces the log.
    #[must_use]
    pub fn logging_to(mut self, log: Log) -> Self {
        self.log = log;
        self
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Number of calls of a kind so far.
    #[must_use]
    pub fn calls(&self, call: Call) -> u64 {
        self.state.lock().calls.get(&call).copied().unwrap_or(0)
    }

    /// Counts and logs a call, chooses its failures, and sleeps for a delay (except for deliveries,
    /// which the caller delays).
    pub(super) fn begin(
        &self,
        call: Call,
        frames: &[FrameIndex],
        detail: &'static str,
    ) -> Decision {
        let mut state = self.state.lock();
        let number = state.calls.entry(call).or_default();
        *number += 1;
        let number = *number;
        let mut failures = Vec::new();
        for (of, when, failure) in &self.rules {
            let applies = *of == call
                && match *when {
                    When::Nth(n) => number == n,
                    When::From(n) => number >= n,
                    When::Every(n) => number.checked_rem(n) == Some(0),
                    When::OneIn(n) => state.rng.one_in(n),
                };
            if applies {
                failures.push(*failure);
            }
        }
        // Logged under the lock, so that the log has the order of the decisions.
        let entry = self.log.begin(call, frames.to_vec(), detail, &failures);
        drop(state);
        if call != Call::Deliver {
            failures.iter().filter_map(Failure::delay).for_each(std::thread::sleep);
        }
        Decision { failures, entry }
    }

    /// Logs the outcome of a call.
    pub(super) fn end(&self, decision: &Decision, outcome: impl fmt::Display) {
        self.log.end(decision.entry, outcome);
    }

    /// A random number below `bound`.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.state.lock().rng.below(bound)
    }

    /// Records that a fill was refused without a removal.
    pub(super) fn owe_removed_event(&self) {
        self.state.lock().owed_events += 1;
    }

    /// Whether a removal event is owed for refused fills; resets it.
    pub(super) fn take_owed_event(&self) -> bool {
        std::mem::take(&mut self.state.lock().owed_events) > 0
    }
}

impl Decision {
    pub(super) fn has(&self, failure: Failure) -> bool {
        self.failures.contains(&failure)
    }

    /// The delay of a delivery.
    pub(super) fn delay(&self) -> Option<Duration> {
        self.failures.iter().filter_map(Failure::delay).max()
    }
}

impl Failure {
    fn delay(&self) -> Option<Duration> {
        if let Self::Delay(delay) = self { Some(*delay) } else { None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fail => f.write_str("fail"),
            Self::Dead => f.write_str("dead"),
            Self::Delay(delay) => write!(f, "delay {delay:?}"),
            Self::Drop => f.write_str("drop"),
            Self::Twice => f.write_str("twice"),
            Self::Reorder => f.write_str("reorder"),
            Self::Unasked => f.write_str("unasked"),
            Self::Outside => f.write_str("outside"),
            Self::Corrupt => f.write_str("corrupt"),
            Self::Unavailable => f.write_str("unavailable"),
            Self::Again => f.write_str("again"),
        }
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("rules", &self.rules).field("log", &self.log).finish()
    }
}
