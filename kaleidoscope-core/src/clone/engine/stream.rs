//! The streaming thread: keeps a bounded number of frames on their way while no vCPU waits.

use super::super::options::{Background, Stopped};
use super::super::retry::Retry;
use super::core::Core;
use super::state::SLICE;
use std::time::Duration;

/// Longest sleep of the thread when it has nothing to do: everything that gives it work also wakes
/// it.
const NAP: Duration = Duration::from_secs(10);

impl Core {
    /// The thread's life.
    pub(super) fn stream(&self) {
        let mut idle = Retry::endless();
        while !self.state().is_stopped() {
            if let Err(why) = self.stream_some(&mut idle) {
                self.state().fail(why);
                return;
            }
        }
    }

    fn stream_some(&self, idle: &mut Retry) -> Result<(), Stopped> {
        let (state, fetcher) = (self.state(), self.fetcher());
        self.answer_deferred()?;
        if state.accounts.is_pressed() {
            self.relieve()?;
        }
        fetcher.feed(true)?;
        if state.ahead() > 0 {
            if let Some(role) = state.waiters.receive() {
                let has_waited = fetcher.receive(SLICE)?;
                drop(role);
                state.rest(has_waited, idle);
                return Ok(());
            }
            state.waiters.wait_for_work(SLICE, true);
            return Ok(());
        }
        if state.options.background != Background::Off {
            self.installer().install_all_staged()?;
        }
        let nap = {
            let mut scheduler = fetcher.scheduler.lock();
            if !self.is_filled() && scheduler.has_filled(state) {
                self.set_filled();
            }
            scheduler.fills_again_in(state)
        };
        state.waiters.wait_for_work(nap.unwrap_or(NAP), false);
        Ok(())
    }
}
