//! The engine under loom: every interleaving of a few threads, up to a bound on preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --profile dev -p kaleidoscope-core --lib --target-dir
//! target/loom clone::engine::model`
//!
//! The model is the engine itself, without its streaming thread; a thread of the model does the
//! streaming thread's work where it matters. A page is one number, written and read with relaxed
//! ordering, so that loom detects a read of a page that was not published. A lost wake-up shows as
//! a deadlock.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use super::super::ports::{
    Clock, Delivery, Event, Eviction, FaultQueue, InstallError, Installed, PageInstaller,
    PageSource, Priority, SourceError,
};
use super::super::{EngineOptions, EngineParts, Feedback, FreeFrames, Stopped};
use super::core::Core;
use crate::addr::FrameIndex;
use crate::color::{ColorMap, Frame, KernelIdentity};
use crate::memory::{MemoryLayout, Page, ZERO_PAGE};
use crate::prefetch::{Access, Blind, Demand, LocalityOrder, PrefetchPolicy};
use crate::sync::{AtomicUsize, Mutex, Ordering};
use loom::thread;
use std::sync::Arc;
use std::time::Duration;

const FRAMES: u32 = 2;

/// An empty frame of the clone.
const EMPTY: usize = 0;
/// A frame that holds zeros.
const ZEROS: usize = 1;
/// A frame that holds the parent's bytes.
const BYTES: usize = 2;

struct Memory {
    frames: Vec<AtomicUsize>,
    /// Unread events, the next one last.
    events: Mutex<Vec<Event>>,
    /// Every installation returns `TryAgain`.
    refuses: bool,
}

impl Memory {
    fn put(&self, frame: FrameIndex, what: usize) -> Result<Installed, InstallError> {
        if self.refuses || !self.events.lock().is_empty() {
            return Ok(Installed::TryAgain);
        }
        let frame = &self.frames[frame.as_usize()];
        assert_eq!(frame.load(Ordering::Relaxed), EMPTY, "installed twice");
        frame.store(what, Ordering::Relaxed);
        Ok(Installed::Installed)
    }

    fn get(&self, frame: u32) -> usize {
        self.frames[frame as usize].load(Ordering::Relaxed)
    }
}

impl PageInstaller for Memory {
    fn install(&self, frame: FrameIndex, _page: &Page) -> Result<Installed, InstallError> {
        self.put(frame, BYTES)
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        // A thread that fills a removed frame cannot know whether the frame has been filled since,
        // or is not empty yet.
        if self.get(frame.0) != EMPTY {
            return Ok(Installed::AlreadyPresent);
        }
        self.put(frame, ZEROS)
    }

    fn wake(&self, _frame: FrameIndex) -> Result<(), InstallError> {
        Ok(())
    }

    fn evict(&self, frame: FrameIndex) -> Result<Eviction, InstallError> {
        let frame = &self.frames[frame.as_usize()];
        assert_ne!(frame.swap(EMPTY, Ordering::Relaxed), EMPTY, "evicted while empty");
        Ok(Eviction::Evicted)
    }
}

impl FaultQueue for Memory {
    fn wait(&self, _wait: Duration) -> Result<(), InstallError> {
        Ok(())
    }

    fn read(&self) -> Result<Option<Event>, InstallError> {
        Ok(self.events.lock().pop())
    }
}

/// Delivers every requested frame at the next `receive`.
struct Source(Mutex<Vec<FrameIndex>>);

impl PageSource for Source {
    fn request(&self, frames: &[FrameIndex], _priority: Priority) -> Result<(), SourceError> {
        self.0.lock().extend(frames);
        Ok(())
    }

    fn receive(
        &self,
        _wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let asked = std::mem::take(&mut *self.0.lock());
        if asked.is_empty() {
            // A real source would wait here.
            thread::yield_now();
        }
        asked.into_iter().for_each(|frame| deliver(Delivery::Page(frame, &ZERO_PAGE)));
        Ok(())
    }
}

struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

#[derive(Clone)]
struct TestClone {
    clone: Arc<Core>,
    memory: Arc<Memory>,
}

impl TestClone {
    fn new(policy: Box<dyn PrefetchPolicy>, feedback: Feedback) -> Self {
        let options = EngineOptions {
            feedback,
            free_frames: FreeFrames::Fetch,
            staged: 1,
            ..EngineOptions::default()
        };
        Self::with(policy, options, false)
    }

    fn with(policy: Box<dyn PrefetchPolicy>, options: EngineOptions, refuses: bool) -> Self {
        let layout = MemoryLayout::contiguous(u64::from(FRAMES) * 4096).unwrap();
        let frames = (0..FRAMES).map(|_| Frame::default());
        let map = ColorMap::new(layout, KernelIdentity::default(), frames, Vec::new()).unwrap();
        let frames = (0..FRAMES).map(|_| AtomicUsize::new(EMPTY)).collect();
        let memory = Arc::new(Memory { frames, events: Mutex::new(Vec::new()), refuses });
        let parts = EngineParts {
            locality: Arc::new(LocalityOrder::new(map)),
            policy,
            source: Arc::new(Source(Mutex::new(Vec::new()))),
            installer: Arc::clone(&memory) as _,
            queue: Some(Arc::clone(&memory) as _),
            clock: Arc::new(FixedClock),
            reservation: None,
            local_cache: None,
        };
        Self { clone: Arc::new(Core::new(parts, options)), memory }
    }

    /// Touches a frame as a vCPU does; returns what the vCPU finds there.
    fn touch(&self, frame: u32) -> usize {
        self.clone.faults.answer(FrameIndex(frame), Access::Read).unwrap();
        self.memory.get(frame)
    }

    fn spawn(&self, act: impl FnOnce(Self) + Send + 'static) -> thread::JoinHandle<()> {
        let test = self.clone();
        thread::spawn(move || act(test))
    }
}

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}

#[test]
fn two_vcpus_touch_one_frame() {
    explore(3, || {
        let test = TestClone::new(Box::new(Demand), Feedback::Off);
        let other = test.spawn(|test| assert_eq!(test.touch(0), BYTES));
        assert_eq!(test.touch(0), BYTES);
        other.join().unwrap();
    });
}

#[test]
fn two_vcpus_touch_two_frames_and_hand_the_receiving_on() {
    explore(2, || {
        let test = TestClone::new(Box::new(Demand), Feedback::Off);
        let other = test.spawn(|test| assert_eq!(test.touch(1), BYTES));
        assert_eq!(test.touch(0), BYTES);
        other.join().unwrap();
    });
}

#[test]
fn a_vcpu_touches_a_frame_that_another_vcpus_fault_prefetches() {
    for feedback in [Feedback::Off, Feedback::Staged] {
        explore(2, move || {
            let test = TestClone::new(Box::new(Blind::aligned(2)), feedback);
            let other = test.spawn(|test| assert_eq!(test.touch(1), BYTES));
            assert_eq!(test.touch(0), BYTES);
            other.join().unwrap();
        });
    }
}

#[test]
fn the_streaming_thread_receives_beside_a_vcpu() {
    explore(2, || {
        let test = TestClone::new(Box::new(Blind::aligned(2)), Feedback::Off);
        let other = test.spawn(|test| {
            // The streaming thread's step, repeated until the pages have arrived. The real thread
            // sleeps until it is kicked.
            while test.clone.state().speculative() > 0 || test.memory.get(0) == EMPTY {
                test.clone.fetcher().request_ahead(false).unwrap();
                if let Some(_role) = test.clone.state().waiters.try_receive() {
                    test.clone.fetcher().receive(Duration::ZERO).unwrap();
                }
                thread::yield_now();
            }
        });
        assert_eq!(test.touch(0), BYTES);
        other.join().unwrap();
        assert_eq!(test.touch(1), BYTES);
    });
}

#[test]
fn kicks_are_not_lost() {
    explore(3, || {
        let test = TestClone::new(Box::new(Demand), Feedback::Off);
        let other = test.spawn(|test| {
            test.clone.state().waiters.kick();
            drop(test.clone.state().waiters.try_receive());
        });
        // Sleeps forever if the kick is lost.
        while !test.clone.state().waiters.wait_for_work(Duration::ZERO, false) {}
        other.join().unwrap();
    });
}

#[test]
fn removed_frames_read_as_zeros() {
    explore(2, || {
        let test = TestClone::new(Box::new(Demand), Feedback::Off);
        // The guest gives frame 0 back while another vCPU touches it. A touch before that finds the
        // snapshot's page, a touch after it finds zeros. As in the kernel, the frame is emptied
        // after the event has been read, and a page installed in between is lost.
        let other = test.spawn(|test| {
            let found = test.touch(0);
            assert!(matches!(found, BYTES | ZEROS | EMPTY), "{found}");
        });
        test.memory.events.lock().push(Event::Removed(0..1));
        test.clone.events().read_all().unwrap();
        test.memory.frames[0].store(EMPTY, Ordering::Relaxed);
        assert_eq!(test.touch(0), ZEROS);
        other.join().unwrap();
        assert_eq!(test.memory.get(0), ZEROS);
    });
}

#[test]
fn evicted_frames_are_fetched_again() {
    explore(2, || {
        let test = TestClone::new(Box::new(Blind::aligned(2)), Feedback::Off);
        assert_eq!(test.touch(0), BYTES);
        let other = test.spawn(|test| {
            test.clone.reclaim(1).unwrap();
        });
        let found = test.touch(1);
        assert!(matches!(found, BYTES | EMPTY), "{found}");
        other.join().unwrap();
        assert_eq!(test.touch(1), BYTES);
    });
}

#[test]
fn stopping_wakes_waiting_threads() {
    explore(2, || {
        let test = TestClone::new(Box::new(Demand), Feedback::Off);
        let other = test.spawn(|test| {
            // Either the page or the stop comes first.
            let _ = test.clone.faults.answer(FrameIndex(0), Access::Read);
        });
        test.clone.state().fail(Stopped::Cancelled);
        other.join().unwrap();
        assert!(test.clone.faults.answer(FrameIndex(1), Access::Read).is_err());
    });
}

/// The clock is fixed, so that only the time slept ends the attempts; and waits do not time out
/// under loom.
#[test]
fn memory_that_always_refuses_ends_all_waiting_threads() {
    explore(2, || {
        let timeout = Duration::from_micros(20);
        let options = EngineOptions { timeout, ..EngineOptions::default() };
        let test = TestClone::with(Box::new(Demand), options, true);
        let touch = |test: &TestClone, frame| {
            let ended = test.clone.faults.answer(FrameIndex(frame), Access::Read);
            let why = test.clone.state().fail(ended.unwrap_err());
            assert!(matches!(why, Stopped::Timeout { .. }), "{why}");
        };
        let other = test.spawn(move |test| touch(&test, 0));
        touch(&test, 0);
        other.join().unwrap();
    });
}
