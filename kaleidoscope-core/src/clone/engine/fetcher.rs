//! The fetcher: requests frames from the source, and receives their pages.

use super::super::options::Stopped;
use super::super::ports::{Delivery, LocalCache, Lookup, PageSource, Priority};
use super::super::retry::Retry;
use super::install::{Installer, Origin, Run};
use super::scheduler::PrefetchScheduler;
use super::state::{CloneState, MAX_WAIT};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::prefetch::{Answer, Fault};
use crate::sync::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Maximum prefetched frames in one request.
const REQUEST_BATCH: usize = 64;

/// Requests frames and receives their pages. There is no dedicated receiving thread: of the threads
/// that wait for a page, one receives for all ([`Waiters`](super::waiters::Waiters)).
pub(super) struct Fetcher {
    pub(super) installer: Installer,
    source: Arc<dyn PageSource>,
    local_cache: Option<Arc<dyn LocalCache>>,
    pub(super) scheduler: Arc<Mutex<PrefetchScheduler>>,
    /// Room for pages, kept from one call of [`receive`](Self::receive) to the next.
    run: Mutex<Run>,
}

impl Fetcher {
    pub(super) fn new(
        installer: Installer,
        source: Arc<dyn PageSource>,
        local_cache: Option<Arc<dyn LocalCache>>,
        scheduler: Arc<Mutex<PrefetchScheduler>>,
    ) -> Self {
        Self { installer, source, local_cache, scheduler, run: Mutex::new(Run::default()) }
    }

    pub(super) fn state(&self) -> &CloneState {
        self.installer.state()
    }

    /// Requests frames in the requested phase. Installs those that the local cache has, and
    /// requests the others from the source.
    pub(super) fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), Stopped> {
        let Some(cache) = &self.local_cache else {
            return Ok(self.source.request(frames, priority)?);
        };
        let mut others = Vec::new();
        let mut page = [0; FRAME_BYTES];
        for frame in frames.iter().copied() {
            let delivery = match cache.take(frame, &mut page) {
                Lookup::Page => Delivery::Page(frame, &page),
                Lookup::Zero => Delivery::Zero(frame),
                Lookup::Miss => {
                    others.push(frame);
                    continue;
                }
            };
            self.installer.deliver(delivery, Origin::LocalCache)?;
        }
        if others.is_empty() { Ok(()) } else { Ok(self.source.request(&others, priority)?) }
    }

    /// Receives pages for all threads, for at most `wait`. The caller has the receiver's role.
    /// Returns `false` if the source returned early without a page, so that the caller can back
    /// off.
    pub(super) fn receive(&self, wait: Duration) -> Result<bool, Stopped> {
        let clock = &self.state().clock;
        let mut result = Ok(());
        let mut has_arrived = false;
        let start = clock.now();
        let mut run = std::mem::take(&mut *self.run.lock());
        self.source.receive(wait, &mut |delivery| {
            has_arrived = true;
            if result.is_ok() {
                result = match self.local_cache {
                    None => self.installer.collect(&mut run, delivery),
                    Some(_) => self.installer.deliver(delivery, Origin::Source),
                };
            }
            if let (Ok(()), Delivery::Page(frame, page), Some(cache)) =
                (&result, delivery, &self.local_cache)
            {
                // The vCPU that waited for the page already runs again.
                cache.keep(frame, page);
            }
        })?;
        result = result.and_then(|()| self.installer.finish_run(&mut run));
        *self.run.lock() = run;
        let now = clock.now();
        self.state().accounts.sample(now);
        result.map(|()| has_arrived || now.saturating_sub(start) >= wait / 2)
    }

    /// Waits until a frame is no longer in flight. Receives for all threads unless another thread
    /// does. `start` is when the vCPU began to wait.
    ///
    /// # Errors
    /// [`Stopped::Timeout`] when the wait exceeds the engine's timeout.
    pub(super) fn wait_for(&self, frame: FrameIndex, start: Duration) -> Result<(), Stopped> {
        let state = self.state();
        let timeout = state.options.timeout;
        let mut idle = Retry::endless();
        while state.frames.is_in_flight(frame) {
            state.check()?;
            if state.clock.now().saturating_sub(start) > timeout {
                return Err(Stopped::Timeout { frame, timeout });
            }
            let Some(role) = state.waiters.try_receive() else {
                let is_over = || !state.frames.is_in_flight(frame) || state.is_stopped();
                state.waiters.wait(MAX_WAIT, is_over);
                continue;
            };
            // The previous receiver may have received the frame just now.
            let has_waited = !state.frames.is_in_flight(frame) || self.receive(MAX_WAIT)?;
            drop(role);
            if state.frames.is_in_flight(frame) {
                self.request_ahead(false)?;
                state.back_off(has_waited, &mut idle);
            }
        }
        Ok(())
    }

    /// Reports a fault to the policy, and queues the frames that it plans to fetch. Returns its
    /// answer for the frame, and the frames that it plans to fill with zeros.
    pub(super) fn ask_policy(&self, fault: &Fault) -> (Answer, Vec<FrameIndex>) {
        let mut zeros = Vec::new();
        let answer = self.scheduler.lock().fault(fault, self.state(), &mut zeros);
        (answer, zeros)
    }

    /// Fills the planned frames with zeros, and requests queued frames.
    pub(super) fn apply_plan(&self, mut zeros: Vec<FrameIndex>) -> Result<(), Stopped> {
        self.installer.zero_ahead(&mut zeros)?;
        self.request_ahead(false)
    }

    /// Requests frames ahead of any touch, up to the source's window. Only the streaming thread
    /// also requests frames for the background fill (`may_fill`).
    pub(super) fn request_ahead(&self, may_fill: bool) -> Result<(), Stopped> {
        let state = self.state();
        let window = self.source.window().max(1);
        let mut zeros = Vec::new();
        let mut batch = [FrameIndex(0); REQUEST_BATCH];
        loop {
            state.check()?;
            let requested = {
                let mut scheduler = self.scheduler.lock();
                let room = window.saturating_sub(state.speculative());
                // A small request costs as much as a large one, so wait until there is more room.
                if room < (window / 4).min(REQUEST_BATCH / 2) {
                    return Ok(());
                }
                let granted = state.accounts.take_for_prefetch(room.min(REQUEST_BATCH));
                let batch = batch.get_mut(..granted).unwrap_or_default();
                let requested = scheduler.next(batch, may_fill, state, &mut zeros);
                state.accounts.give_back(granted - requested);
                state.add_speculative(requested);
                requested
            };
            if let Some(frames @ [_, ..]) = batch.get_mut(..requested) {
                // Neighbors arrive together, and one call installs them.
                frames.sort_unstable();
                self.request(frames, Priority::Prefetch)?;
            }
            self.installer.zero_ahead(&mut zeros)?;
            zeros.clear();
            if requested < REQUEST_BATCH {
                return Ok(());
            }
        }
    }
}
