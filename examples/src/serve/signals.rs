//! Waiting for the signal to stop.

use crate::failure::Failure;
use nix::sys::signal::{SigSet, Signal};

/// The signals that end a server, blocked so that they can be waited for.
pub(super) struct Signals(SigSet);

impl Signals {
    /// Blocks SIGINT and SIGTERM in this thread and those that it starts from now on.
    pub(super) fn block() -> Result<Self, Failure> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block().map_err(|e| Failure::new(format_args!("cannot block signals: {e}")))?;
        Ok(Self(set))
    }

    /// Returns when one of them comes.
    pub(super) fn wait(&self) -> Result<(), Failure> {
        let waited = self.0.wait();
        waited.map(drop).map_err(|e| Failure::new(format_args!("cannot wait for a signal: {e}")))
    }
}
