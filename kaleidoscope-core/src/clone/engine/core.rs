//! The engine's parts, and the loop of its fault threads.

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
// `std`'s `AtomicU32`, because it synchronizes nothing: loom need not explore its
// interleavings.
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// The state that the engine's threads share: the fault path, which owns the parts below it.
pub(in super::super) struct Core {
    pub(super) faults: FaultPath,
    /// The frame at which the next search for frames to evict starts.
    pub(super) reclaimed_to: AtomicU32,
    /// The background fill has brought every frame.
    filled: AtomicBool,
}

impl Core {
    /// An engine without its streaming thread.
    pub(super) fn new(parts: EngineParts, options: EngineOptions) -> Self {
        let accounts = Accounts::new(parts.reservation);
        let free_frames = options.free_frames.for_source(parts.locality.map(), &*parts.source);
        let options = options.free_frames(free_frames);
        let state = Box::new(CloneState::new(parts.locality, options, parts.clock, accounts));
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

    /// Answers faults that were read by threads that were installing a page.
    pub(super) fn answer_deferred(&self) -> Result<(), Stopped> {
        while let Some((frame, access)) = self.events().next_deferred() {
            self.faults.answer(frame, access)?;
        }
        Ok(())
    }

    /// Runs `work` for a caller of the engine. Stops the clone if the work fails, or if a policy, a
    /// source or the clone's memory panics: otherwise the frame would stay in flight forever.
    pub(super) fn contained<T>(
        &self,
        what: &str,
        work: impl FnOnce(&Self) -> Result<T, Stopped>,
    ) -> Result<T, Stopped> {
        let done = service::contained(what, || work(self));
        done.map_err(Stopped::from).and_then(|done| done).map_err(|error| self.state().fail(error))
    }

    /// The pressure on the host's memory has changed.
    pub(super) fn on_pressure(&self, level: Pressure) {
        if level >= Pressure::Reclaim {
            self.state().accounts.request_reclaim();
        }
        self.state().waiters.kick();
    }
}
