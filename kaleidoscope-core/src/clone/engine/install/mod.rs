//! The installer: installs, zeroes, stages and evicts pages of the clone's memory.
//!
//! ```text
//!  deliver ─► try_deliver ─► try_stage            a prefetched page whose use is sampled
//!                        └─► install ─► PageInstaller::install, zero
//!  collect ─► finish_run ─► PageInstaller::install_run, zero_run
//! ```
//!
//! `deliver` is the entry for pages that arrive, from the source or from the local cache; `collect`
//! and `finish_run` install pages of neighbors together for which no vCPU waits. A frame is installed by its owner: the one thread that moved it to *installing*.

mod evict;
mod run;
mod staged;
mod zeros;

pub(super) use run::Run;
pub(super) use staged::Reason;

use super::super::options::Stopped;
use super::super::ports::{Delivery, Installed, PageInstaller, SourceError};
use super::super::retry::Retry;
use super::super::statistics::Count;
use super::events::Events;
use super::frame_states::Flags;
use super::granules::Granules;
use super::scheduler::PrefetchScheduler;
use super::state::CloneState;
use crate::addr::FrameIndex;
use crate::memory::Page;
use crate::sync::{Mutex, RwLockReadGuard};
use std::sync::Arc;

/// Where a frame's page comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// The source.
    Source,
    /// The engine, which fills a free frame with zeros.
    Zeros,
    /// The local cache.
    LocalCache,
}

/// Result of an attempt to install a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Attempt {
    /// The attempt is over: the frame is resident, staged, or not for this thread to install.
    Done,
    /// The memory is changing: the caller reads its events, and tries again.
    Again,
}

/// Installs pages through the [`PageInstaller`] port.
pub(super) struct Installer {
    pub(super) events: Events,
    port: Arc<dyn PageInstaller>,
    /// Its policy learns whether prefetched frames were used.
    scheduler: Arc<Mutex<PrefetchScheduler>>,
    granules: Granules,
}

impl Installer {
    pub(super) fn new(
        events: Events,
        port: Arc<dyn PageInstaller>,
        scheduler: Arc<Mutex<PrefetchScheduler>>,
    ) -> Self {
        let granule = events.state.options.granule;
        let granules = Granules::new(granule, events.state.locality.frames());
        Self { events, port, scheduler, granules }
    }

    pub(super) fn state(&self) -> &CloneState {
        &self.events.state
    }

    pub(super) fn granules(&self) -> &Granules {
        &self.granules
    }

    /// Records the frames that are mapped from the start, which are neither planned nor requested.
    pub(super) fn record_mapped(&self) {
        for frame in self.port.shown().into_iter().flatten().map(FrameIndex) {
            if self.state().frames.set_mapped(frame) {
                self.state().count(frame, Count::LocalCache);
            }
        }
    }

    /// Wakes the vCPUs that wait for a frame that is resident.
    pub(super) fn wake(&self, frame: FrameIndex) -> Result<(), Stopped> {
        Ok(self.port.wake(frame)?)
    }

    /// Installs or stages a frame's page. Returns when the frame is resident, staged, or not for
    /// this thread to install. Retries while the memory is changing.
    pub(super) fn deliver(&self, delivery: Delivery<'_>, origin: Origin) -> Result<(), Stopped> {
        let frame = delivery.frame();
        let frames = self.state().locality.frames();
        if frame.0 >= frames {
            let what = format!("it delivered frame {frame} of a guest with {frames} frames");
            return Err(SourceError::new(what).into());
        }
        let mut retry = Retry::new(self.state().options.timeout);
        loop {
            let gate = self.events.enter();
            let attempt = self.try_deliver(&gate, delivery, origin)?;
            drop(gate);
            match attempt {
                Attempt::Done => return self.zero_granule(frame),
                Attempt::Again => self.events.before_retry(frame, &mut retry)?,
            }
        }
    }

    /// One attempt of [`deliver`](Self::deliver). The caller holds the gate shared.
    pub(super) fn try_deliver(
        &self,
        gate: &RwLockReadGuard<'_, ()>,
        delivery: Delivery<'_>,
        origin: Origin,
    ) -> Result<Attempt, Stopped> {
        let state = self.state();
        let frame = delivery.frame();
        let page = match delivery {
            Delivery::Page(_, page) => Some(page),
            Delivery::Zero(_) => None,
            Delivery::Unavailable(_) => {
                if let Some(flags) = state.frames.set_unavailable(frame) {
                    state.accounts.give_back(1);
                    self.finish_request(flags);
                }
                return Ok(Attempt::Done);
            }
        };
        let Some(flags) = state.frames.begin_install(frame) else {
            state.count(frame, Count::Dropped);
            return Ok(Attempt::Done);
        };
        if flags.prefetched
            && !flags.wanted
            && self.is_sampled(frame)
            && self.try_stage(frame, page)
        {
            self.count_arrival(frame, page, flags, origin);
            self.finish_request(flags);
            return Ok(Attempt::Done);
        }
        if self.install(gate, frame, page)? == Installed::TryAgain {
            state.frames.defer_install(frame);
            return Ok(Attempt::Again);
        }
        let flags = state.frames.finish_install(frame);
        state.accounts.add_resident(state.color(frame));
        self.count_arrival(frame, page, flags, origin);
        self.finish_request(flags);
        Ok(Attempt::Done)
    }

    /// Installs a page, or zeros for `None`. The thread owns the frame.
    fn install(
        &self,
        _gate: &RwLockReadGuard<'_, ()>,
        frame: FrameIndex,
        page: Option<&Page>,
    ) -> Result<Installed, Stopped> {
        let installed = match page {
            Some(page) => self.port.install(frame, page)?,
            None => self.port.zero(frame)?,
        };
        if installed == Installed::AlreadyPresent {
            // The process that filled the frame may not have woken this clone's vCPUs.
            self.port.wake(frame)?;
        }
        Ok(installed)
    }

    /// A frame is no longer in flight: counts it down, and wakes the threads that wait for it.
    fn finish_request(&self, flags: Flags) {
        self.state().end_speculative(flags);
        self.state().wake_if_wanted(flags);
    }

    fn count_arrival(&self, frame: FrameIndex, page: Option<&Page>, flags: Flags, origin: Origin) {
        let count = match (origin, flags) {
            (Origin::Zeros, _) => return,
            (Origin::LocalCache, _) => Count::LocalCache,
            (Origin::Source, Flags { prefetched: true, .. }) => Count::Prefetched,
            (Origin::Source, Flags { fill: true, .. }) => Count::Filled,
            (Origin::Source, Flags { .. }) => Count::Fetched,
        };
        self.state().count(frame, count);
        if origin == Origin::Source && page.is_some() {
            self.state().counters.moved();
        }
    }
}
