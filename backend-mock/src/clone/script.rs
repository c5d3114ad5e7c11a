//! What goes wrong, and when.

use super::log::{Begun, Call, Log};
use crate::Rng;
use kaleidoscope_core::addr::FrameIndex;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What goes wrong with a call. A failure that means nothing for a call has no effect on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// Any call: it returns an error and does nothing.
    Fail,
    /// Any call that can return an error: this one and all later ones of the same port do.
    Dead,
    /// Any call: it begins so much later. A delivery: it arrives so much later, and others overtake
    /// it.
    Delay(Duration),
    /// A request: never sent. A delivery, an event: lost.
    Drop,
    /// A request, a delivery, an event: once more.
    Twice,
    /// A delivery, an event: others overtake it.
    Reorder,
    /// A request: a frame that nobody asked for is asked for as well, so that it is delivered
    /// unasked. An event: a fault on a frame that nobody waits for comes first.
    Unasked,
    /// A delivery: before it comes a page for a frame that does not exist.
    Outside,
    /// A delivery: one byte is wrong.
    Corrupt,
    /// A delivery: the source says that it does not hold the frame.
    Unavailable,
    /// A filling: not now. A queue under the same script says in its next event that no frames were
    /// given back.
    Again,
}

/// When something goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum When {
    /// At the call with this number, from 1.
    Nth(u64),
    /// At this call and all later ones.
    From(u64),
    /// At every so manieth call.
    Every(u64),
    /// At random, once in so many calls.
    OneIn(u64),
}

/// What goes wrong with which calls, as a function of a seed and the order of the calls; and the
/// [`Log`] of them all. Copies are the same script, so that one drives all decorators of a clone.
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
    /// Calls that said "not now" of which the queue has not told yet.
    excuses: u64,
}

/// What was decided about a call.
pub(super) struct Decided {
    pub(super) failures: Vec<Failure>,
    begun: Begun,
}

impl Script {
    /// Nothing goes wrong, everything is logged.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State { rng: Rng::new(seed), calls: BTreeMap::new(), excuses: 0 };
        Self { rules: Vec::new(), state: Arc::new(Mutex::new(state)), log: Log::default() }
    }

    /// Adds something that goes wrong. Several rules may strike the same call.
    #[must_use]
    pub fn on(mut self, call: Call, when: When, failure: Failure) -> Self {
        self.rules.push((call, when, failure));
        self
    }

    /// Writes to this log from now on.
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

    /// How often something was called.
    #[must_use]
    pub fn calls(&self, call: Call) -> u64 {
        self.state.lock().calls.get(&call).copied().unwrap_or(0)
    }

    /// Counts a call, logs it, decides what goes wrong with it, and waits if that is a delay (of
    /// anything but a delivery).
    pub(super) fn begin(&self, call: Call, frames: &[FrameIndex], detail: &'static str) -> Decided {
        let mut state = self.state.lock();
        let number = state.calls.entry(call).or_default();
        *number += 1;
        let number = *number;
        let mut failures = Vec::new();
        for (of, when, failure) in &self.rules {
            let strikes = *of == call
                && match *when {
                    When::Nth(n) => number == n,
                    When::From(n) => number >= n,
                    When::Every(n) => number.checked_rem(n) == Some(0),
                    When::OneIn(n) => state.rng.one_in(n),
                };
            if strikes {
                failures.push(*failure);
            }
        }
        // Logged under the lock, so that the log has the order in which was decided.
        let begun = self.log.begin(call, frames.to_vec(), detail, &failures);
        drop(state);
        if call != Call::Deliver {
            failures.iter().filter_map(Failure::delay).for_each(std::thread::sleep);
        }
        Decided { failures, begun }
    }

    /// Logs what came of a call.
    pub(super) fn end(&self, decided: &Decided, outcome: impl fmt::Display) {
        self.log.end(decided.begun, outcome);
    }

    /// A number below `bound`.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.state.lock().rng.below(bound)
    }

    /// Remembers that a filling was refused without reason.
    pub(super) fn owe_excuse(&self) {
        self.state.lock().excuses += 1;
    }

    /// Whether an event is owed for fillings that were refused.
    pub(super) fn take_excuse(&self) -> bool {
        std::mem::take(&mut self.state.lock().excuses) > 0
    }
}

impl Decided {
    pub(super) fn has(&self, failure: Failure) -> bool {
        self.failures.contains(&failure)
    }

    /// How long a delivery is delayed.
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
