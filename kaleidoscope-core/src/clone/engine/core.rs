//! The parts of an engine, and the work of its threads.

use super::super::options::{EngineOptions, EngineParts, Stopped};
use super::super::ports::Event;
use super::super::retry::Retry;
use super::accounts::Accounts;
use super::events::Events;
use super::fault::FaultPath;
use super::fetcher::Fetcher;
use super::install::Installer;
use super::scheduler::PrefetchScheduler;
use super::state::CloneState;
use crate::alloc::Pressure;
use crate::service;
use crate::sync::{AtomicBool, Mutex, Ordering};
// Nothing is synchronized through an `AtomicU32` here: a model checker need not try its
// interleavings.
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// What the engine's threads share: the fault path, which owns the parts below it.
pub(in super::super) struct Core {
    pub(super) faults: FaultPath,
    /// Where the search for frames to evict goes on.
    pub(super) reclaimed_to: AtomicU32,
    /// Everything that can be fetched is resident.
    filled: AtomicBool,
}

impl Core {
    /// An engine without its streaming thread.
    pub(super) fn new(parts: EngineParts, options: EngineOptions) -> Self {
        let accounts = Accounts::new(parts.reservation);
        let state = CloneState::new(parts.locality, options, parts.clock, accounts);
        let scheduler = PrefetchScheduler::new(parts.policy, &state.locality, &state.options);
        let scheduler = Arc::new(Mutex::new(scheduler));
        let events = Events::new(state, parts.queue);
        let installer = Installer::new(events, parts.installer, Arc::clone(&scheduler));
        let fetcher = Fetcher::new(installer, parts.source, parts.local_cache, scheduler);
        Self {
            faults: FaultPath { fetcher },
            reclaimed_to: AtomicU32::new(0),
            filled: AtomicBool::new(false),
        }
    }

    pub(super) fn state(&self) -> &CloneState {
        self.faults.state()
    }

    pub(super) fn fetcher(&self) -> &Fetcher {
        &self.faults.fetcher
    }

    pub(super) fn installer(&self) -> &Installer {
        &self.faults.fetcher.installer
    }

    pub(super) fn events(&self) -> &Events {
        &self.installer().events
    }

    pub(super) fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    pub(super) fn set_filled(&self) {
        self.filled.store(true, Ordering::Release);
    }

    /// The loop of one fault thread.
    pub(super) fn serve(&self) -> Result<(), Stopped> {
        let events = self.events();
        if !events.has_queue() {
            return Ok(());
        }
        let mut idle = Retry::endless();
        loop {
            self.state().check()?;
            if events.is_closed() {
                return Ok(());
            }
            let fault = match events.next_deferred() {
                Some(fault) => Some(fault),
                None => match events.wait(&mut idle)? {
                    Some(Event::Fault { frame, access }) => Some((frame, access)),
                    Some(Event::Removed(_) | Event::Closed) | None => None,
                },
            };
            if let Some((frame, access)) = fault {
                self.faults.answer(frame, access)?;
            }
        }
    }

    /// Answers faults that were read by threads that could not answer them.
    pub(super) fn answer_deferred(&self) -> Result<(), Stopped> {
        while let Some((frame, access)) = self.events().next_deferred() {
            self.faults.answer(frame, access)?;
        }
        Ok(())
    }

    /// Does work for a caller of the engine. The clone is stopped when the work fails, and when a
    /// policy, a source or the clone's memory panics: the frame concerned would be on its way for
    /// ever.
    pub(super) fn contained<T>(
        &self,
        what: &str,
        work: impl FnOnce(&Self) -> Result<T, Stopped>,
    ) -> Result<T, Stopped> {
        let done = service::contained(what, || work(self));
        done.map_err(Stopped::from).and_then(|done| done).map_err(|error| self.state().fail(error))
    }

    /// The host's memory has become scarcer, or less scarce.
    pub(super) fn on_pressure(&self, level: Pressure) {
        if level >= Pressure::Reclaim {
            self.state().accounts.request_reclaim();
        }
        self.state().waiters.kick();
    }
}
