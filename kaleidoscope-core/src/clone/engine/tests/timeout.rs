//! Memory that returns `TryAgain`, forever or for a while, and ports that return at once with
//! nothing: every entry point of the engine ends in time, and keeps no processor busy.

use super::*;
use crate::clone::engine::core::Core;
use crate::clone::engine::frame_states::Phase;
use crate::clone::ports::{Clock, Event, Eviction, FaultQueue};
use crate::prefetch::{Fault, Planner};
use crate::sync::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

const TIMEOUT: Duration = Duration::from_millis(60);

/// Maximum attempts in that time: 40 without a sleep, 7 with growing sleeps, and one per
/// millisecond. A second operation may be in progress when the first times out.
const ATTEMPTS: usize = 2 * (40 + 7 + 60);

/// Longer than any of these tests takes on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// A clock that stands still. The time slept still counts.
struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Duration {
        Duration::from_secs(7)
    }
}

/// Memory that returns `TryAgain` for `refusals` attempts, and reports the given events.
struct RefusingMemory {
    memory: Arc<Memory>,
    refusals: AtomicUsize,
    attempts: AtomicUsize,
    eviction_attempts: AtomicUsize,
    events: Mutex<Vec<Event>>,
    /// Reported whenever there is no other event.
    repeated_event: Option<Event>,
    waits: AtomicUsize,
}

impl RefusingMemory {
    fn new(refusals: usize) -> Arc<Self> {
        Self::with(refusals, Vec::new(), None)
    }

    fn with(refusals: usize, events: Vec<Event>, repeated_event: Option<Event>) -> Arc<Self> {
        Arc::new(Self {
            memory: Memory::new(),
            refusals: AtomicUsize::new(refusals),
            attempts: AtomicUsize::new(0),
            eviction_attempts: AtomicUsize::new(0),
            events: Mutex::new(events),
            repeated_event,
            waits: AtomicUsize::new(0),
        })
    }

    fn refuses(&self) -> bool {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let left = |left: usize| left.checked_sub(1);
        self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
    }

    fn attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }
}

impl PageInstaller for RefusingMemory {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        if self.refuses() { Ok(Installed::TryAgain) } else { self.memory.install(frame, page) }
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        if self.memory.page(frame).is_some() {
            return Ok(Installed::AlreadyPresent);
        }
        self.install(frame, &ZERO_PAGE)
    }

    fn wake(&self, _frame: FrameIndex) -> Result<(), InstallError> {
        Ok(())
    }

    fn evict(&self, _frame: FrameIndex) -> Result<Eviction, InstallError> {
        self.eviction_attempts.fetch_add(1, Ordering::Relaxed);
        Ok(Eviction::InUse)
    }
}

impl FaultQueue for RefusingMemory {
    /// Never waits.
    fn wait(&self, _wait: Duration) -> Result<(), InstallError> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn read(&self) -> Result<Option<Event>, InstallError> {
        Ok(self.events.lock().pop().or_else(|| self.repeated_event.clone()))
    }
}

fn parts(
    memory: &Arc<RefusingMemory>,
    policy: Box<dyn PrefetchPolicy>,
    clock: Arc<dyn Clock>,
) -> EngineParts {
    EngineParts {
        locality: guest().0,
        policy,
        source: local(),
        installer: Arc::clone(memory) as _,
        queue: Some(Arc::clone(memory) as _),
        clock,
        reservation: None,
        local_cache: None,
    }
}

fn options() -> EngineOptions {
    EngineOptions { timeout: TIMEOUT, free_frames: FreeFrames::Zero, ..EngineOptions::default() }
}

/// Result of `act`, which must end within [`LONG`].
fn in_time<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (say, said) = channel();
    std::thread::spawn(move || say.send(act()));
    said.recv_timeout(LONG).expect("it takes forever")
}

/// An entry point of the engine, called on memory that refuses pages from then on.
struct EntryPoint {
    name: &'static str,
    options: EngineOptions,
    policy: fn() -> Box<dyn PrefetchPolicy>,
    /// Runs before the memory refuses pages.
    before: fn(&Core),
    act: fn(&Core) -> Result<(), Stopped>,
    events: fn() -> Vec<Event>,
    /// Frames that are resident when `act` succeeds.
    resident: &'static [u32],
}

fn touch(clone: &Core, frame: u32) -> Result<(), Stopped> {
    clone.faults.answer(FrameIndex(frame), Access::Write)
}

fn entry_points() -> Vec<EntryPoint> {
    let plain = || EntryPoint {
        name: "a fault",
        options: options(),
        policy: || Box::new(Demand),
        before: |_| (),
        act: |clone| touch(clone, 8),
        events: Vec::new,
        resident: &[8],
    };
    let staged = EngineOptions { feedback: Feedback::Staged, ..options() };
    let blind: fn() -> Box<dyn PrefetchPolicy> = || Box::new(Blind::aligned(8));
    // The other frames of its block are prefetched, and staged.
    let bring: fn(&Core) = |clone| {
        touch(clone, 8).unwrap();
        while clone.state().speculative() > 0 {
            clone.fetcher().receive(Duration::ZERO).unwrap();
        }
    };
    vec![
        plain(),
        EntryPoint {
            name: "a fault on a free frame",
            act: |clone| touch(clone, 3),
            resident: &[3],
            ..plain()
        },
        EntryPoint {
            name: "a fault on a granule",
            options: EngineOptions { granule: 16, ..options() },
            resident: &[0, 3, 8, 15],
            ..plain()
        },
        EntryPoint {
            name: "a fault on a frame that was given back",
            before: |clone| {
                let _gate = clone.events().close_gate();
                clone.events().remove(7..9).unwrap();
            },
            ..plain()
        },
        EntryPoint {
            name: "a fault on a staged page",
            options: staged,
            policy: blind,
            before: bring,
            act: |clone| touch(clone, 9),
            resident: &[8, 9],
            ..plain()
        },
        EntryPoint {
            name: "installing staged pages",
            options: EngineOptions { background: Background::Full, ..staged },
            policy: blind,
            before: bring,
            act: |clone| clone.installer().install_all_staged(),
            resident: &[9, 11, 12, 13, 14, 15],
            ..plain()
        },
        EntryPoint {
            name: "streaming",
            options: EngineOptions { background: Background::Full, ..options() },
            act: |clone| {
                clone.fetcher().request_ahead(true)?;
                while clone.state().speculative() > 0 {
                    clone.fetcher().receive(Duration::ZERO)?;
                    clone.fetcher().request_ahead(true)?;
                }
                Ok(())
            },
            resident: &[0, 1, 8, 699],
            ..plain()
        },
        EntryPoint {
            name: "a fault that is an event",
            events: || vec![Event::Fault { frame: FrameIndex(8), access: Access::Read }],
            act: |clone| {
                std::thread::scope(|scope| {
                    let server = scope.spawn(|| clone.serve());
                    while !server.is_finished()
                        && clone.state().frames.phase(FrameIndex(8)) != Phase::Present
                    {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    if !server.is_finished() {
                        clone.state().fail(Stopped::Cancelled);
                    }
                    match server.join().unwrap() {
                        Err(Stopped::Cancelled) => Ok(()),
                        ended => ended,
                    }
                })
            },
            ..plain()
        },
    ]
}

#[test]
fn memory_that_always_refuses_ends_the_clone_in_time() {
    let clocks: [fn() -> Arc<dyn Clock>; 2] =
        [|| Arc::new(FixedClock), || Arc::new(SystemClock::new())];
    for clock in clocks {
        for entry in entry_points() {
            let memory = RefusingMemory::with(0, (entry.events)(), None);
            let clone = Core::new(parts(&memory, (entry.policy)(), clock()), entry.options);
            (entry.before)(&clone);
            memory.refusals.store(usize::MAX, Ordering::Relaxed);
            let before = memory.attempts();
            let ended = in_time(move || (entry.act)(&clone));
            assert!(
                matches!(ended, Err(Stopped::Timeout { timeout: TIMEOUT, .. })),
                "{}: {ended:?}",
                entry.name
            );
            let attempts = memory.attempts() - before;
            assert!((2..=ATTEMPTS).contains(&attempts), "{}: {attempts} attempts", entry.name);
        }
    }
}

#[test]
fn memory_that_refuses_for_a_while_is_filled_then() {
    for refusals in [1, 7, 45] {
        for entry in entry_points() {
            let memory = RefusingMemory::with(0, (entry.events)(), None);
            let patient = EngineOptions { timeout: LONG, ..entry.options };
            let clock = Arc::new(SystemClock::new());
            let clone = Core::new(parts(&memory, (entry.policy)(), clock), patient);
            (entry.before)(&clone);
            memory.refusals.store(refusals, Ordering::Relaxed);
            in_time(move || (entry.act)(&clone)).unwrap();
            assert_eq!(memory.refusals.load(Ordering::Relaxed), 0, "{}", entry.name);
            let there = |frame: &u32| memory.memory.page(FrameIndex(*frame)).is_some();
            assert!(entry.resident.iter().all(there), "{} after {refusals}", entry.name);
        }
    }
}

#[test]
fn the_streaming_thread_ends_the_clone_that_cannot_be_filled() {
    let memory = RefusingMemory::new(usize::MAX);
    let full = EngineOptions { background: Background::Full, ..options() };
    let parts = parts(&memory, Box::new(Demand), Arc::new(SystemClock::new()));
    let engine = Arc::new(Engine::start(parts, full).unwrap());
    let (watched, start) = (Arc::clone(&engine), Instant::now());
    let why = in_time(move || {
        loop {
            match watched.stopped() {
                Some(why) => break why,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
    assert!(matches!(why, Stopped::Timeout { .. }), "{why:?} after {:?}", start.elapsed());
    assert!(memory.attempts() <= ATTEMPTS, "{} attempts", memory.attempts());
    assert!(matches!(engine.fault(FrameIndex(1), Access::Read), Err(Stopped::Timeout { .. })));
}

#[test]
fn events_without_end_do_not_keep_a_fault() {
    let touched = Event::Fault { frame: FrameIndex(20), access: Access::Read };
    for event in [Event::Removed(40..41), touched] {
        let memory = RefusingMemory::with(usize::MAX, Vec::new(), Some(event));
        let clone = Core::new(parts(&memory, Box::new(Demand), Arc::new(FixedClock)), options());
        let ended = in_time(move || clone.faults.answer(FrameIndex(8), Access::Read));
        assert!(matches!(ended, Err(Stopped::Timeout { .. })), "{ended:?}");
        assert!(memory.attempts() <= ATTEMPTS);
    }
}

/// Plans the same zeros again and again, for each fault and for the background.
struct ZeroingPolicy;

impl PrefetchPolicy for ZeroingPolicy {
    fn name(&self) -> &'static str {
        "zeros"
    }

    fn fault(&mut self, _fault: &Fault, planner: &mut Planner<'_>) {
        planner.zero(FrameIndex(10));
        planner.zero(FrameIndex(17));
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        planner.zero(FrameIndex(24));
        planner.zero(FrameIndex(31));
    }
}

#[test]
fn frames_that_cannot_be_zeroed_ahead_are_skipped() {
    // Also with frames that must not be zeros: then the plan has no effect.
    for free_frames in [FreeFrames::Zero, FreeFrames::Fetch] {
        let memory = RefusingMemory::new(0);
        let options = EngineOptions { free_frames, ..options() };
        let clone =
            Core::new(parts(&memory, Box::new(ZeroingPolicy), Arc::new(FixedClock)), options);
        clone.faults.answer(FrameIndex(8), Access::Read).unwrap();
        memory.refusals.store(usize::MAX, Ordering::Relaxed);
        let before = memory.attempts();
        let clone = in_time(move || {
            clone.fetcher().request_ahead(false).unwrap();
            clone
        });
        assert!(memory.attempts() - before <= 2 * FRAMES as usize, "{}", memory.attempts());
        memory.refusals.store(0, Ordering::Relaxed);
        in_time(move || clone.faults.answer(FrameIndex(24), Access::Read)).unwrap();
    }
}

#[test]
fn reclaim_searches_every_frame_once_at_most() {
    let memory = RefusingMemory::new(0);
    let clock = Arc::new(SystemClock::new());
    let full = EngineOptions { background: Background::Full, ..options() };
    let engine = Engine::start(parts(&memory, Box::new(Blind::aligned(64)), clock), full).unwrap();
    for frame in (0..FRAMES).step_by(64).map(FrameIndex) {
        engine.fault(frame, Access::Read).unwrap();
    }
    assert_eq!(engine.reclaim(u32::MAX).unwrap(), 0);
    let eviction_attempts = memory.eviction_attempts.load(Ordering::Relaxed);
    assert!((1..=FRAMES as usize).contains(&eviction_attempts), "{eviction_attempts}");
}

/// Always returns at once, without a page.
struct EmptySource(AtomicUsize);

impl PageSource for EmptySource {
    fn request(&self, _: &[FrameIndex], _: Priority) -> Result<(), SourceError> {
        Ok(())
    }

    fn receive(&self, _: Duration, _: &mut dyn FnMut(Delivery<'_>)) -> Result<(), SourceError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn ports_that_return_at_once_with_nothing_keep_no_processor_busy() {
    let memory = RefusingMemory::new(0);
    let source = Arc::new(EmptySource(AtomicUsize::new(0)));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let parts = parts(&memory, Box::new(Blind::aligned(8)), clock);
    let parts = EngineParts { source: Arc::clone(&source) as _, ..parts };
    let engine = Arc::new(Engine::start(parts, options()).unwrap());
    let (serving, start) = (Arc::clone(&engine), Instant::now());
    let server = std::thread::spawn(move || serving.serve());
    let faulting = Arc::clone(&engine);
    let ended = in_time(move || faulting.fault(FrameIndex(8), Access::Read));
    assert!(matches!(ended, Err(Stopped::Timeout { .. })), "{ended:?}");
    assert!(matches!(server.join().unwrap(), Err(Stopped::Timeout { .. })));
    // For each thread: attempts without a sleep, with growing sleeps, and one per millisecond.
    let most = 100 + usize::try_from(start.elapsed().as_millis()).unwrap();
    let (received, waited) =
        (source.0.load(Ordering::Relaxed), memory.waits.load(Ordering::Relaxed));
    assert!((1..=2 * most).contains(&received), "{received} of {most}");
    assert!((1..=most).contains(&waited), "{waited} of {most}");
}
