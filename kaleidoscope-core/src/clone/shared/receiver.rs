//! The pages that siblings share, and the thread that receives them.

use super::pages::{Content, FetchedPages, Known};
use super::sibling::Sibling;
use super::waiting::{Asked, SiblingRequests};
use crate::addr::FrameIndex;
use crate::clone::Retry;
use crate::clone::ports::{Clock, Delivery, PageSource, Priority, SourceError, SystemClock};
use crate::service;
use foldhash::fast::RandomState;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long one wait for upstream takes: the thread ends that long after the last sibling, at most.
const ROUND: Duration = Duration::from_millis(100);

/// Stack of the thread, in bytes: upstream may be anybody's.
const STACK: usize = 2 << 20;

/// Frames taken at once, so that the lock is not taken for each.
const BATCH: usize = 16;

/// Frames stored at once: as many as may be late because of each other.
const HEAP: usize = 64;

/// Pages that the clones of one host share; see [the module](super).
#[derive(Debug)]
pub struct Shared {
    receiver: Arc<SharedReceiver>,
    alive: Arc<Alive>,
}

/// What was shared so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct SharedStatistics {
    /// Frames that were asked for upstream, those that were evicted and asked for again included.
    pub fetched: u64,
    /// Frames that siblings were given.
    pub given: u64,
    /// Frames on their way that were asked for again as urgent.
    pub promoted: u64,
    /// Frames that were evicted before a sibling that wanted them took them.
    pub missed: u64,
    /// Pages that are kept now.
    pub kept: usize,
    /// Siblings that there are now.
    pub siblings: usize,
}

/// Ends the thread when the last user is gone.
#[derive(Debug)]
pub(super) struct Alive(Arc<SharedReceiver>);

pub(super) struct SharedReceiver {
    upstream: Arc<dyn PageSource>,
    state: Mutex<State>,
    ended: AtomicBool,
}

struct State {
    pages: FetchedPages,
    siblings: HashMap<u64, SiblingRequests, RandomState>,
    /// The siblings that wait for a frame that is on its way; those that are gone included.
    waiting: HashMap<u32, Vec<u64>, RandomState>,
    next_sibling: u64,
    failure: Option<Arc<SourceError>>,
    statistics: SharedStatistics,
}

/// What has to be asked for upstream, after the lock is released.
#[derive(Default)]
struct ToAsk {
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

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}

impl Shared {
    /// Shares what comes from `upstream`, a guest of `frames` frames; at most `bound` pages (at
    /// least one) are kept.
    ///
    /// # Errors
    /// [`io::Error`] when the system has no thread to give.
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
        let (of_thread, failing) = (Arc::clone(&receiver), Arc::clone(&receiver));
        let panicked = move |error| {
            // Those that wait do not wait for a thread that is gone.
            let what = "the thread that receives shared pages has ended";
            failing.fail(SourceError::caused_by(what, Box::new(error)));
        };
        service::spawn("shared pages", STACK, move || of_thread.run(), panicked)?;
        Ok(Self { alive: Arc::new(Alive(Arc::clone(&receiver))), receiver })
    }

    /// A source of pages for one more clone. It lives as long as it is used, also without the
    /// [`Shared`] that it is from.
    #[must_use]
    pub fn sibling(&self) -> Sibling {
        let mut state = self.receiver.state.lock();
        let id = state.next_sibling;
        state.next_sibling += 1;
        let wants = SiblingRequests::default();
        let news = Arc::clone(&wants.news);
        state.siblings.insert(id, wants);
        Sibling::new(id, Arc::clone(&self.receiver), news, Arc::clone(&self.alive))
    }

    /// What was shared so far.
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

    /// The receiving thread.
    fn run(&self) {
        let mut heap = Vec::with_capacity(HEAP);
        let (clock, mut idle) = (SystemClock::new(), Retry::endless());
        while !self.ended.load(Ordering::Acquire) {
            let (start, mut has_come) = (clock.now(), false);
            let received = self.upstream.receive(ROUND, &mut |delivery| {
                has_come = true;
                heap.push((delivery.frame(), Content::new(delivery)));
                if heap.len() == HEAP {
                    self.arrived(&mut heap);
                }
            });
            self.arrived(&mut heap);
            if let Err(error) = received {
                return self.fail(error);
            }
            // A source that comes back at once with nothing does not keep a processor busy.
            if has_come || clock.now().saturating_sub(start) >= ROUND / 2 {
                idle.reset();
            } else {
                let _ = idle.pause(&clock);
            }
        }
    }

    fn fail(&self, error: SourceError) {
        let mut state = self.state.lock();
        state.failure.get_or_insert_with(|| Arc::new(error));
        for wants in state.siblings.values() {
            wants.news.notify_all();
        }
    }

    /// Keeps what came, and tells those who wait: each sibling once, since every telling is a
    /// change of threads.
    fn arrived(&self, heap: &mut Vec<(FrameIndex, Content)>) {
        if heap.is_empty() {
            return;
        }
        let mut tell = Vec::new();
        let mut state = self.state.lock();
        for (frame, content) in heap.drain(..) {
            // Once more, or never asked for: what we have is as good.
            if !matches!(state.pages.look_up(frame), Known::Asked(_)) {
                continue;
            }
            state.pages.store(frame, &content);
            for id in state.waiting.remove(&frame.0).unwrap_or_default() {
                if let Some(wants) = state.siblings.get_mut(&id)
                    && wants.make_ready(frame, &content)
                {
                    tell.push(Arc::clone(&wants.news));
                }
            }
        }
        drop(state);
        tell.iter().for_each(|news| {
            news.notify_all();
        });
    }

    pub(super) fn request(
        &self,
        id: u64,
        frames: &[FrameIndex],
        priority: Priority,
    ) -> Result<(), SourceError> {
        let mut ask = ToAsk::default();
        {
            let mut state = self.state.lock();
            if let Some(error) = &state.failure {
                return Err(passed_on(error));
            }
            for &frame in frames {
                if !state.pages.has(frame) {
                    return Err(SourceError::new(format!("the guest has no frame {frame}")));
                }
                state.want(id, frame, priority, &mut ask);
            }
        }
        self.ask_upstream(&ask, priority)
    }

    fn ask_upstream(&self, ask: &ToAsk, priority: Priority) -> Result<(), SourceError> {
        // What is on its way already goes first: it has waited longest.
        for (frames, priority) in [(&ask.promoted, Priority::Urgent), (&ask.frames, priority)] {
            if frames.is_empty() {
                continue;
            }
            if let Err(error) = self.upstream.request(frames, priority) {
                // Others may wait for these frames, too.
                self.fail(error);
                let state = self.state.lock();
                return Err(state
                    .failure
                    .as_ref()
                    .map_or_else(|| SourceError::new("the shared source has failed"), passed_on));
            }
        }
        Ok(())
    }

    /// Waits until something is ready for a sibling, and hands all of it over.
    pub(super) fn receive(
        &self,
        id: u64,
        news: &Condvar,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let until = Instant::now().checked_add(wait);
        let mut batch = Vec::with_capacity(BATCH);
        let mut any = false;
        loop {
            let mut ask = ToAsk::default();
            {
                let mut state = self.state.lock();
                while !any && !state.has_ready(id) && state.failure.is_none() {
                    let timed_out = match until {
                        Some(until) => news.wait_until(&mut state, until).timed_out(),
                        None => {
                            news.wait(&mut state);
                            false
                        }
                    };
                    if timed_out && !state.has_ready(id) && state.failure.is_none() {
                        return Ok(());
                    }
                }
                state.take(id, &mut batch, &mut ask);
                match &state.failure {
                    Some(error) if batch.is_empty() && !any => return Err(passed_on(error)),
                    Some(_) | None => {}
                }
            }
            self.ask_upstream(&ask, Priority::Urgent)?;
            if batch.is_empty() {
                if any {
                    return Ok(());
                }
                // What was ready has been evicted and comes again; the next call may take it.
                if until.is_some_and(|until| Instant::now() >= until) {
                    return Ok(());
                }
                continue;
            }
            any = true;
            // Without the lock: a sibling may take its time.
            for (frame, content) in batch.drain(..) {
                deliver(content.as_delivery(frame));
            }
        }
    }

    pub(super) fn leave(&self, id: u64) {
        let gone = self.state.lock().siblings.remove(&id);
        // Its pages are freed without the lock.
        drop(gone);
    }
}

impl State {
    fn has_ready(&self, id: u64) -> bool {
        self.siblings.get(&id).is_some_and(SiblingRequests::has_ready)
    }

    /// Notes that a sibling wants a frame, and does what can be done about it here.
    fn want(&mut self, id: u64, frame: FrameIndex, priority: Priority, ask: &mut ToAsk) {
        let Some(wants) = self.siblings.get_mut(&id) else { return };
        let asked = wants.ask(frame, priority);
        if asked == Asked::Again {
            return;
        }
        let known = self.pages.look_up(frame);
        match known {
            Known::Here(content) if asked == Asked::New => {
                if wants.make_ready(frame, &content) {
                    // Another of its threads may be waiting.
                    wants.news.notify_all();
                }
            }
            Known::Here(_) => wants.hasten(frame),
            Known::Nothing if asked == Asked::New => self.fetch(id, frame, priority, ask),
            // It came, was evicted, and is fetched again when its turn comes: now.
            Known::Nothing => wants.hasten(frame),
            Known::Asked(before) => {
                if asked == Asked::New {
                    self.waiting.entry(frame.0).or_default().push(id);
                } else {
                    wants.hasten(frame);
                }
                self.promote(frame, before, priority, ask);
            }
        }
    }

    fn promote(&mut self, frame: FrameIndex, before: Priority, now: Priority, ask: &mut ToAsk) {
        if before < now {
            self.pages.ask(frame, now);
            self.statistics.promoted += 1;
            ask.promoted.push(frame);
        }
    }

    fn fetch(&mut self, id: u64, frame: FrameIndex, priority: Priority, ask: &mut ToAsk) {
        self.pages.ask(frame, priority);
        self.waiting.entry(frame.0).or_default().push(id);
        self.statistics.fetched += 1;
        ask.frames.push(frame);
    }

    /// Takes some of what is ready for a sibling.
    fn take(&mut self, id: u64, batch: &mut Vec<(FrameIndex, Content)>, ask: &mut ToAsk) {
        while batch.len() < BATCH {
            let Some(wants) = self.siblings.get_mut(&id) else { return };
            let Some(ready) = wants.take() else { return };
            let known = match ready.content {
                Some(content) => Known::Here(content),
                None => self.pages.look_up(ready.frame),
            };
            match known {
                Known::Here(content) => {
                    wants.given(ready.frame);
                    self.statistics.given += 1;
                    batch.push((ready.frame, content));
                }
                Known::Nothing => {
                    self.statistics.missed += 1;
                    self.fetch(id, ready.frame, Priority::Urgent, ask);
                }
                Known::Asked(before) => {
                    self.statistics.missed += 1;
                    self.waiting.entry(ready.frame.0).or_default().push(id);
                    self.promote(ready.frame, before, Priority::Urgent, ask);
                }
            }
        }
    }
}

fn passed_on(error: &Arc<SourceError>) -> SourceError {
    SourceError::caused_by("the source that siblings share has failed", Arc::clone(error))
}
