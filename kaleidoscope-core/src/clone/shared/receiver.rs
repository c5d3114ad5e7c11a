//! The shared page cache, and the thread that receives pages.

use super::pages::{Content, FetchedPages, FrameState};
use super::sibling::Sibling;
use super::waiting::{RequestChange, SiblingRequests};
use crate::addr::FrameIndex;
use crate::clone::Retry;
use crate::clone::ports::{Clock, Delivery, PageSource, Priority, SourceError, SystemClock};
use crate::memory::SnapshotId;
use crate::service;
use foldhash::fast::RandomState;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest single wait for upstream, after which the thread checks whether to end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Stack of the thread, in bytes. Large, because `upstream` may be the embedder's code.
const STACK: usize = 2 << 20;

/// Frames delivered per acquisition of the lock.
const BATCH: usize = 16;

/// Most frames stored per acquisition of the lock, which bounds how long the first one waits for
/// the others.
const STORE_BATCH: usize = 64;

/// The pages that the clones of one host share; see [the module](super).
#[derive(Debug)]
pub struct Shared {
    receiver: Arc<SharedReceiver>,
    stop_on_drop: Arc<StopOnDrop>,
}

/// Counters of a shared cache.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct SharedStatistics {
    /// Frames requested upstream, including those requested again after eviction.
    pub fetched: u64,
    /// Frames delivered to siblings.
    pub given: u64,
    /// Frames in flight that were requested again as urgent.
    pub promoted: u64,
    /// Frames that were evicted before a sibling that requested them took them.
    pub missed: u64,
    /// Pages cached now.
    pub kept: usize,
    /// Siblings now.
    pub siblings: usize,
}

/// Ends the thread when the last user is dropped.
#[derive(Debug)]
pub(super) struct StopOnDrop(Arc<SharedReceiver>);

pub(super) struct SharedReceiver {
    upstream: Arc<dyn PageSource>,
    state: Mutex<State>,
    ended: AtomicBool,
}

struct State {
    pages: FetchedPages,
    siblings: HashMap<u64, SiblingRequests, RandomState>,
    /// The siblings that wait for a frame in flight. May hold ids of dropped siblings.
    waiting: HashMap<u32, Vec<u64>, RandomState>,
    next_sibling: u64,
    failure: Option<Arc<SourceError>>,
    statistics: SharedStatistics,
}

/// Requests to send upstream after the lock is released.
#[derive(Default)]
struct UpstreamRequests {
    frames: Vec<FrameIndex>,
    promoted: Vec<FrameIndex>,
}

impl fmt::Debug for SharedReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceiver")
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}

impl Shared {
    /// Shares the pages of `upstream`, a guest of `frames` frames. At most `bound` pages (at least
    /// one) are cached.
    ///
    /// # Errors
    /// [`io::Error`] if the thread cannot be started.
    pub fn new(upstream: Arc<dyn PageSource>, frames: u32, bound: usize) -> io::Result<Self> {
        let state = State {
            pages: FetchedPages::new(frames, bound),
            siblings: HashMap::default(),
            waiting: HashMap::default(),
            next_sibling: 0,
            failure: None,
            statistics: SharedStatistics::default(),
        };
        let receiver = Arc::new(SharedReceiver {
            upstream,
            state: Mutex::new(state),
            ended: AtomicBool::new(false),
        });
        let (thread_receiver, panic_receiver) = (Arc::clone(&receiver), Arc::clone(&receiver));
        let panicked = move |error| {
            // Wake waiting siblings: the thread that would serve them is gone.
            let what = "the thread that receives shared pages has ended";
            panic_receiver.fail(SourceError::caused_by(what, Box::new(error)));
        };
        service::spawn("shared pages", STACK, move || thread_receiver.run(), panicked)?;
        Ok(Self { stop_on_drop: Arc::new(StopOnDrop(Arc::clone(&receiver))), receiver })
    }

    /// A page source for one more clone. It works as long as it exists, even after the [`Shared`]
    /// is dropped.
    #[must_use]
    pub fn sibling(&self) -> Sibling {
        let mut state = self.receiver.state.lock();
        let id = state.next_sibling;
        state.next_sibling += 1;
        let requests = SiblingRequests::default();
        let ready_signal = Arc::clone(&requests.ready_signal);
        state.siblings.insert(id, requests);
        Sibling::new(id, Arc::clone(&self.receiver), ready_signal, Arc::clone(&self.stop_on_drop))
    }

    /// Counters so far.
    #[must_use]
    pub fn statistics(&self) -> SharedStatistics {
        self.receiver.statistics()
    }
}

impl SharedReceiver {
    fn statistics(&self) -> SharedStatistics {
        let state = self.state.lock();
        SharedStatistics {
            kept: state.pages.pages(),
            siblings: state.siblings.len(),
            ..state.statistics
        }
    }

    pub(super) fn window(&self) -> usize {
        self.upstream.window()
    }

    pub(super) fn snapshot_id(&self) -> Option<SnapshotId> {
        self.upstream.snapshot_id()
    }

    /// The receiving thread.
    fn run(&self) {
        let mut arrivals = Vec::with_capacity(STORE_BATCH);
        let (clock, mut idle) = (SystemClock::new(), Retry::endless());
        while !self.ended.load(Ordering::Acquire) {
            let (start, mut has_arrived) = (clock.now(), false);
            let received = self.upstream.receive(POLL_INTERVAL, &mut |delivery| {
                has_arrived = true;
                arrivals.push((delivery.frame(), Content::new(delivery)));
                if arrivals.len() == STORE_BATCH {
                    self.arrived(&mut arrivals);
                }
            });
            self.arrived(&mut arrivals);
            if let Err(error) = received {
                return self.fail(error);
            }
            // Back off if upstream returns early without pages, to keep the CPU idle.
            if has_arrived || clock.now().saturating_sub(start) >= POLL_INTERVAL / 2 {
                idle.reset();
            } else {
                let _ = idle.pause(&clock);
            }
        }
    }

    fn fail(&self, error: SourceError) {
        let mut state = self.state.lock();
        state.failure.get_or_insert_with(|| Arc::new(error));
        for requests in state.siblings.values() {
            requests.ready_signal.notify_all();
        }
    }

    /// Stores the received pages and notifies waiting siblings, each once, because every
    /// notification is a context switch.
    fn arrived(&self, arrivals: &mut Vec<(FrameIndex, Content)>) {
        if arrivals.is_empty() {
            return;
        }
        let mut notify = Vec::new();
        let mut state = self.state.lock();
        for (frame, content) in arrivals.drain(..) {
            // Ignore repeated and unrequested frames: any cached content is as good.
            if !matches!(state.pages.look_up(frame), FrameState::InFlight(_)) {
                continue;
            }
            state.pages.store(frame, &content);
            for id in state.waiting.remove(&frame.0).unwrap_or_default() {
                if let Some(requests) = state.siblings.get_mut(&id)
                    && requests.make_ready(frame, &content)
                {
                    notify.push(Arc::clone(&requests.ready_signal));
                }
            }
        }
        drop(state);
        notify.iter().for_each(|ready_signal| {
            ready_signal.notify_all();
        });
    }

    pub(super) fn request(
        &self,
        id: u64,
        frames: &[FrameIndex],
        priority: Priority,
    ) -> Result<(), SourceError> {
        let mut upstream_requests = UpstreamRequests::default();
        {
            let mut state = self.state.lock();
            if let Some(error) = &state.failure {
                return Err(shared_error(error));
            }
            for &frame in frames {
                if !state.pages.has(frame) {
                    return Err(SourceError::new(format!("the guest has no frame {frame}")));
                }
                state.want(id, frame, priority, &mut upstream_requests);
            }
        }
        self.ask_upstream(&upstream_requests, priority)
    }

    fn ask_upstream(
        &self,
        upstream_requests: &UpstreamRequests,
        priority: Priority,
    ) -> Result<(), SourceError> {
        // Promoted frames first: their requester has waited longest.
        for (frames, priority) in
            [(&upstream_requests.promoted, Priority::Urgent), (&upstream_requests.frames, priority)]
        {
            if frames.is_empty() {
                continue;
            }
            if let Err(error) = self.upstream.request(frames, priority) {
                // Other siblings may wait for these frames as well.
                self.fail(error);
                let state = self.state.lock();
                return Err(state.failure.as_ref().map_or_else(
                    || SourceError::new("the shared source has failed"),
                    shared_error,
                ));
            }
        }
        Ok(())
    }

    /// Waits until a frame is ready for a sibling, and delivers all ready frames.
    pub(super) fn receive(
        &self,
        id: u64,
        ready_signal: &Condvar,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let until = Instant::now().checked_add(wait);
        let mut batch = Vec::with_capacity(BATCH);
        let mut any = false;
        loop {
            let mut upstream_requests = UpstreamRequests::default();
            {
                let mut state = self.state.lock();
                while !any && !state.has_ready(id) && state.failure.is_none() {
                    let timed_out = match until {
                        Some(until) => ready_signal.wait_until(&mut state, until).timed_out(),
                        None => {
                            ready_signal.wait(&mut state);
                            false
                        }
                    };
                    if timed_out && !state.has_ready(id) && state.failure.is_none() {
                        return Ok(());
                    }
                }
                state.take(id, &mut batch, &mut upstream_requests);
                match &state.failure {
                    Some(error) if batch.is_empty() && !any => return Err(shared_error(error)),
                    Some(_) | None => {}
                }
            }
            self.ask_upstream(&upstream_requests, Priority::Urgent)?;
            if batch.is_empty() {
                if any {
                    return Ok(());
                }
                // The ready frames were evicted and are fetched again.
                if until.is_some_and(|until| Instant::now() >= until) {
                    return Ok(());
                }
                continue;
            }
            any = true;
            // Without the lock: the callback may be slow.
            for (frame, content) in batch.drain(..) {
                deliver(content.as_delivery(frame));
            }
        }
    }

    pub(super) fn leave(&self, id: u64) {
        let gone = self.state.lock().siblings.remove(&id);
        // Free its pages without the lock.
        drop(gone);
    }
}

impl State {
    fn has_ready(&self, id: u64) -> bool {
        self.siblings.get(&id).is_some_and(SiblingRequests::has_ready)
    }

    /// Records a request of a sibling, and makes the frame ready or fetches it.
    fn want(
        &mut self,
        id: u64,
        frame: FrameIndex,
        priority: Priority,
        upstream_requests: &mut UpstreamRequests,
    ) {
        let Some(requests) = self.siblings.get_mut(&id) else { return };
        let change = requests.request(frame, priority);
        if change == RequestChange::Again {
            return;
        }
        let frame_state = self.pages.look_up(frame);
        match frame_state {
            FrameState::Cached(content) if change == RequestChange::New => {
                if requests.make_ready(frame, &content) {
                    // Another thread of the sibling may be waiting.
                    requests.ready_signal.notify_all();
                }
            }
            FrameState::Cached(_) => requests.make_urgent(frame),
            FrameState::Absent if change == RequestChange::New => {
                self.fetch(id, frame, priority, upstream_requests)
            }
            // It arrived and was evicted. Move it to the front, so that it is fetched again now.
            FrameState::Absent => requests.make_urgent(frame),
            FrameState::InFlight(before) => {
                if change == RequestChange::New {
                    self.waiting.entry(frame.0).or_default().push(id);
                } else {
                    requests.make_urgent(frame);
                }
                self.promote(frame, before, priority, upstream_requests);
            }
        }
    }

    fn promote(
        &mut self,
        frame: FrameIndex,
        before: Priority,
        now: Priority,
        upstream_requests: &mut UpstreamRequests,
    ) {
        if before < now {
            self.pages.mark_in_flight(frame, now);
            self.statistics.promoted += 1;
            upstream_requests.promoted.push(frame);
        }
    }

    fn fetch(
        &mut self,
        id: u64,
        frame: FrameIndex,
        priority: Priority,
        upstream_requests: &mut UpstreamRequests,
    ) {
        self.pages.mark_in_flight(frame, priority);
        self.waiting.entry(frame.0).or_default().push(id);
        self.statistics.fetched += 1;
        upstream_requests.frames.push(frame);
    }

    /// Takes up to a batch of ready frames for a sibling.
    fn take(
        &mut self,
        id: u64,
        batch: &mut Vec<(FrameIndex, Content)>,
        upstream_requests: &mut UpstreamRequests,
    ) {
        while batch.len() < BATCH {
            let Some(requests) = self.siblings.get_mut(&id) else { return };
            let Some(ready) = requests.take() else { return };
            let frame_state = match ready.content {
                Some(content) => FrameState::Cached(content),
                None => self.pages.look_up(ready.frame),
            };
            match frame_state {
                FrameState::Cached(content) => {
                    requests.given(ready.frame);
                    self.statistics.given += 1;
                    batch.push((ready.frame, content));
                }
                FrameState::Absent => {
                    self.statistics.missed += 1;
                    self.fetch(id, ready.frame, Priority::Urgent, upstream_requests);
                }
                FrameState::InFlight(before) => {
                    self.statistics.missed += 1;
                    self.waiting.entry(ready.frame.0).or_default().push(id);
                    self.promote(ready.frame, before, Priority::Urgent, upstream_requests);
                }
            }
        }
    }
}

fn shared_error(error: &Arc<SourceError>) -> SourceError {
    SourceError::caused_by("the source that siblings share has failed", Arc::clone(error))
}
