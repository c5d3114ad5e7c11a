//! The streaming thread: keeps a bounded number of prefetched frames in flight, and receives them
//! while no vCPU waits.

use super::super::options::{Background, Stopped};
use super::super::retry::Retry;
use super::core::Core;
use super::state::MAX_WAIT;
use std::time::Duration;

/// Longest wait of the thread when it has nothing to do. Whatever gives the thread work also wakes
/// it.
const IDLE_WAIT: Duration = Duration::from_secs(10);

impl Core {
    /// The thread's loop, until the clone is stopped.
    pub(super) fn stream(&self) {
        let mut idle = Retry::endless();
        while !self.state().is_stopped() {
            if let Err(why) = self.stream_step(&mut idle) {
                self.state().fail(why);
                return;
            }
        }
    }

    fn stream_step(&self, idle: &mut Retry) -> Result<(), Stopped> {
        let (state, fetcher) = (self.state(), self.fetcher());
        self.answer_deferred()?;
        if state.accounts.take_reclaim_request() {
            self.relieve_pressure()?;
        }
        fetcher.request_ahead(true)?;
        if state.speculative() > 0 {
            if let Some(role) = state.waiters.try_receive() {
                let has_waited = fetcher.receive(MAX_WAIT)?;
                drop(role);
                state.back_off(has_waited, idle);
                return Ok(());
            }
            state.waiters.wait_for_work(MAX_WAIT, true);
            return Ok(());
        }
        if state.options.background != Background::Off {
            self.installer().install_all_staged()?;
        }
        let fill_delay = {
            let mut scheduler = fetcher.scheduler.lock();
            if !self.is_filled() && scheduler.has_filled(state) {
                self.set_filled();
            }
            scheduler.next_fill_in(state)
        };
        state.waiters.wait_for_work(fill_delay.unwrap_or(IDLE_WAIT), false);
        Ok(())
    }
}
