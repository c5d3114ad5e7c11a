//! Handling of SIGINT, SIGTERM, SIGHUP and SIGUSR2.
//!
//! Only the command handles signals, never the library. The signals are blocked in every thread,
//! and one thread waits for them. At the first signal this thread [cleans up](undo) what would
//! outlive the process, and the process dies of that signal. A second signal ends the process at
//! once.
//!
//! A process that is killed by SIGKILL cannot clean up. Unfinished files have no name
//! ([`crate::outfile`]), children die with the process ([`child`]), and a [guard] process performs
//! the other cleanup actions.

pub(crate) mod child;
pub(crate) mod guard;
mod registry;
mod undo;

pub(crate) use registry::{
    Armed, Entrusted, Scratch, adopt_guard, arm_after, arm_end, arm_with, entrust,
    forget_predecessor, replace_guard, share_guard, uninterrupted,
};
pub(crate) use undo::Undo;

use crate::failure::Failure;
use nix::sys::signal::{SigSet, Signal, raise};
use std::fs;
use std::process;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The signals that end the command.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR2];

/// Receives the first signal of a command that handles it itself ([`Stop`]).
static STOP_SENDER: Mutex<Option<StopSender>> = Mutex::new(None);

/// Signals that wait to be looked at; further ones are dropped.
const WAITING: usize = 8;

/// The way to a [`Stop`].
struct StopSender {
    signals: SyncSender<Signal>,
    /// Whether it gets all signals, and not the first one only.
    is_every: bool,
}

/// Starts handling signals. Must be called before any other thread exists, because threads inherit
/// the signal mask.
pub(crate) fn begin() -> Result<(), Failure> {
    // With SIGXFSZ blocked, a write beyond the file size limit is an error and does not end the
    // process. Children have their own mask.
    let mut ignored = SigSet::empty();
    ignored.add(Signal::SIGXFSZ);
    let ending = ending(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    let failed = |e: nix::Error| Failure::new(format_args!("cannot block signals: {e}"));
    ignored.thread_block().map_err(failed)?;
    ending.thread_block().map_err(failed)?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    let thread = thread.spawn(move || wait(&ending));
    thread.map(drop).map_err(|e| Failure::new(format_args!("the system gives no thread: {e}")))
}

/// Blocks the signals in a process that ends by other means.
fn block() {
    let _ = SigSet::from_iter(ENDING).thread_block();
}

/// The ending signals without those that were ignored at the start of the process, as by `nohup`
/// and shells. `status` is the text of `/proc/self/status`.
fn ending(status: &str) -> SigSet {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let is_heeded = |signal: &Signal| ignored & (1 << (*signal as u32 - 1)) == 0;
    ENDING.into_iter().filter(is_heeded).collect()
}

/// Waits for signals, until one ends the process.
fn wait(ending: &SigSet) {
    loop {
        let Ok(signal) = ending.wait() else { return };
        let mut sender = STOP_SENDER.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender.as_ref().map(|sender| sender.signals.try_send(signal));
        if !sender.as_ref().is_some_and(|sender| sender.is_every) {
            *sender = None;
        }
        drop(sender);
        if matches!(sent, Some(Ok(()) | Err(TrySendError::Full(_)))) {
            continue;
        }
        // From here on a second signal ends the process at once.
        let _ = ending.thread_unblock();
        registry::undo_all();
        let _ = raise(signal);
        // Process 1 does not die of signals without handlers.
        process::exit(128 + signal as i32);
    }
}

/// Lets a command handle the first ending signal itself, after which a second signal ends the
/// process; or all of them.
#[derive(Debug)]
pub(crate) struct Stop(Receiver<Signal>);

impl Stop {
    /// Claims the next signal.
    pub(crate) fn take() -> Self {
        Self::claim(false)
    }

    /// Claims all signals until it is dropped.
    pub(crate) fn take_every() -> Self {
        Self::claim(true)
    }

    fn claim(is_every: bool) -> Self {
        let (signals, receiver) = sync_channel(WAITING);
        let sender = StopSender { signals, is_every };
        *STOP_SENDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Self(receiver)
    }

    /// Waits for the signal for at most `time`. Returns whether it came.
    pub(crate) fn comes_within(&self, time: Duration) -> bool {
        // A disconnected sender counts as a signal: the sender is dropped only after sending one.
        !matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }

    /// The next signal, if one comes within `time`.
    pub(crate) fn signal_within(&self, time: Duration) -> Option<Signal> {
        self.0.recv_timeout(time).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_stay_ignored() {
        let all = SigSet::from_iter(ENDING);
        assert_eq!(ending("Name:\tx\nSigIgn:\t0000000000001000\n"), all);
        let without_hangup = ending("SigIgn:\t0000000000000001\n");
        assert!(!without_hangup.contains(Signal::SIGHUP));
        assert!(
            without_hangup.contains(Signal::SIGINT) && without_hangup.contains(Signal::SIGTERM)
        );
        assert_eq!(ending(""), all);
    }
}
