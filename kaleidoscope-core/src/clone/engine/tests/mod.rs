//! The engine on a small memory of these tests. The mock backend's tests go further.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod free;
mod granules;
mod panics;
mod runs;
mod shown;
mod timeout;

use super::super::ports::{
    Delivery, InstallError, Installed, PageInstaller, PageSource, Priority, SourceError,
    SystemClock,
};
use super::super::*;
use crate::addr::FrameIndex;
use crate::alloc::{CloneLimits, Host, HostLimits, Reservation};
use crate::color::{Color, ColorMap, Frame, KernelIdentity};
use crate::memory::{GuestMemory, MemoryLayout, Page, VecMemory, ZERO_PAGE};
use crate::prefetch::{Access, Blind, Demand, LocalityOrder, PrefetchPolicy};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

const FRAMES: u32 = 700;

/// Frame 3 of every 7 is free, frame 5 of every 7 is zero.
fn guest() -> (Arc<LocalityOrder>, Arc<VecMemory>) {
    let layout = MemoryLayout::contiguous(u64::from(FRAMES) * 4096).unwrap();
    let color = |n: u32| if n % 7 == 3 { Color::Free } else { Color::Anonymous };
    let frames = (0..FRAMES).map(|n| Frame { color: color(n), ..Frame::default() });
    let map = ColorMap::new(layout.clone(), KernelIdentity::default(), frames, Vec::new()).unwrap();
    let mut memory = VecMemory::zeroed(layout);
    for (n, page) in (0u32..).zip(memory.bytes_mut().chunks_exact_mut(4096)) {
        if n % 7 != 5 {
            page.iter_mut().zip(n..).for_each(|(byte, i)| *byte = u8::try_from(i % 251).unwrap());
        }
    }
    (Arc::new(LocalityOrder::new(map)), Arc::new(memory))
}

/// A clone's memory without a fault queue: tests call the engine for each touch.
#[derive(Default)]
struct Memory {
    pages: Mutex<Vec<Option<Box<Page>>>>,
}

impl Memory {
    fn new() -> Arc<Self> {
        let memory = Self::default();
        memory.pages.lock().resize(FRAMES as usize, None);
        Arc::new(memory)
    }

    fn page(&self, frame: FrameIndex) -> Option<Page> {
        self.pages.lock()[frame.as_usize()].as_deref().copied()
    }
}

impl PageInstaller for Memory {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        let mut pages = self.pages.lock();
        assert!(pages[frame.as_usize()].is_none(), "frame {frame} is installed twice");
        pages[frame.as_usize()] = Some(Box::new(*page));
        Ok(Installed::Installed)
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.install(frame, &ZERO_PAGE)
    }

    fn wake(&self, _frame: FrameIndex) -> Result<(), InstallError> {
        Ok(())
    }
}

fn start(
    memory: &Arc<Memory>,
    source: Arc<dyn PageSource>,
    policy: Box<dyn PrefetchPolicy>,
    options: EngineOptions,
) -> Engine {
    start_with(memory, source, policy, options, None)
}

fn start_with(
    memory: &Arc<Memory>,
    source: Arc<dyn PageSource>,
    policy: Box<dyn PrefetchPolicy>,
    options: EngineOptions,
    reservation: Option<Reservation>,
) -> Engine {
    let locality = guest().0;
    let installer: Arc<dyn PageInstaller> = Arc::clone(memory) as _;
    let clock = Arc::new(SystemClock::new());
    let parts = EngineParts {
        locality,
        policy,
        source,
        installer,
        queue: None,
        clock,
        reservation,
        local_cache: None,
    };
    Engine::start(parts, options).unwrap()
}

fn local() -> Arc<dyn PageSource> {
    Arc::new(LocalSource::new(guest().1))
}

fn snapshot(image: &VecMemory, frame: FrameIndex) -> Page {
    let mut page = [0; 4096];
    image.read(crate::addr::Gpa(u64::from(frame.0) * 4096), &mut page).unwrap();
    page
}

#[test]
fn many_threads_get_the_bytes_of_the_freeze() {
    let image = guest().1;
    for feedback in [Feedback::Off, Feedback::Staged, Feedback::Sampled { one_in: 3 }] {
        let policies: [Box<dyn PrefetchPolicy>; 2] =
            [Box::new(Demand), Box::new(Blind::aligned(16))];
        for policy in policies {
            let memory = Memory::new();
            let options = EngineOptions { feedback, staged: 20, ..EngineOptions::default() };
            let engine = start(&memory, local(), policy, options);
            std::thread::scope(|scope| {
                for vcpu in 0..4u32 {
                    let (engine, memory, image) = (&engine, &memory, &image);
                    scope.spawn(move || {
                        for n in 0..2000u32 {
                            let frame = FrameIndex((n * (vcpu * 2 + 1) * 37) % FRAMES);
                            if memory.page(frame).is_none() {
                                engine.fault(frame, Access::Read).unwrap();
                            }
                            assert_eq!(memory.page(frame), Some(snapshot(image, frame)), "{frame}");
                        }
                    });
                }
            });
            let total = engine.statistics().total();
            let resident = memory.pages.lock().iter().flatten().count() as u64;
            assert_eq!(total.resident, resident, "{total:?}");
            // If several threads wait for one frame, each counts a stall.
            assert!(total.faults + total.late <= engine.statistics().stalls(), "{total:?}");
        }
    }
}

#[test]
fn untouched_prefetched_frames_are_reclaimed() {
    let memory = Memory::new();
    let options = EngineOptions { feedback: Feedback::Staged, ..EngineOptions::default() };
    let engine = start(&memory, local(), Box::new(Blind::aligned(16)), options);
    engine.fault(FrameIndex(0), Access::Read).unwrap();
    while engine.statistics().total().prefetched < 15 {
        std::thread::yield_now();
    }
    engine.fault(FrameIndex(1), Access::Read).unwrap();
    let statistics = engine.statistics();
    assert_eq!(statistics.total().staged_faults, 1);
    assert_eq!(statistics.accuracy(), Some(1.0 / 15.0));
    assert_eq!(statistics.coverage(), Some(0.5));
    assert_eq!(engine.reclaim(4).unwrap(), 4);
    assert_eq!(engine.reclaim(100).unwrap(), 10);
    let total = engine.statistics().total();
    assert_eq!((total.resident, total.unused), (2, 14));
    engine.fault(FrameIndex(2), Access::Read).unwrap();
    assert_eq!(memory.page(FrameIndex(2)), Some(snapshot(&guest().1, FrameIndex(2))));
}

#[test]
fn pressure_reclaims_unused_frames_and_uncharges_them() {
    let host = Host::new(HostLimits::for_frames(1 << 20));
    let limits = CloneLimits { frames: 200, shrink_prefetch_at: 100, reclaim_at: 150 };
    let reservation = host.admit(limits).unwrap();
    let memory = Memory::new();
    let options = EngineOptions { feedback: Feedback::Staged, ..EngineOptions::default() };
    let policy = Box::new(Blind::aligned(64));
    let engine = start_with(&memory, local(), policy, options, Some(reservation));
    // Each fault prefetches 63 pages that are not touched, and that must be dropped.
    for block in 0..FRAMES / 64 {
        engine.fault(FrameIndex(block * 64), Access::Read).unwrap();
    }
    for n in 0..FRAMES {
        engine.fault(FrameIndex(n), Access::Read).unwrap();
        assert_eq!(memory.page(FrameIndex(n)), Some(snapshot(&guest().1, FrameIndex(n))));
    }
    engine.reclaim(FRAMES).unwrap();
    let total = engine.statistics().total();
    assert_eq!(total.resident, u64::from(FRAMES));
    assert_eq!(host.used(), u64::from(FRAMES), "faults go beyond the clone's limit: {total:?}");
    assert_eq!(engine.footprint().total(), u64::from(FRAMES));
    assert_eq!(engine.footprint_history().last().unwrap().frames, engine.footprint());
    engine.removed(0..100).unwrap();
    assert_eq!(host.used(), u64::from(FRAMES) - 100);
    drop(engine);
    assert_eq!((host.used(), host.granted()), (0, 0));
}

#[test]
fn filling_ends_with_every_frame() {
    for free_frames in [FreeFrames::Zero, FreeFrames::Fetch] {
        let (memory, image) = (Memory::new(), guest().1);
        let background = Background::Full;
        let options = EngineOptions { background, free_frames, ..EngineOptions::default() };
        let engine = start(&memory, local(), Box::new(Demand), options);
        while !engine.is_filled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(engine.is_whole());
        engine.stop();
        assert!(!engine.is_whole(), "a stopped clone is not whole");
        for n in 0..FRAMES {
            let is_left_out = n % 7 == 3 && free_frames == FreeFrames::Zero;
            let expected = (!is_left_out).then(|| snapshot(&image, FrameIndex(n)));
            assert_eq!(memory.page(FrameIndex(n)), expected, "{n}");
        }
        let total = engine.statistics().total();
        assert_eq!((total.filled, total.faults, total.prefetched), (total.resident, 0, 0));
    }
}

#[test]
fn a_clone_that_lacks_frames_is_not_whole() {
    let memory = Memory::new();
    let options = EngineOptions { free_frames: FreeFrames::Zero, ..EngineOptions::default() };
    let engine = start(&memory, local(), Box::new(Demand), options);
    for n in 0..FRAMES {
        // Free frames are filled with zeros when they are touched.
        assert!(!engine.is_whole() || (n..FRAMES).all(|n| n % 7 == 3));
        engine.fault(FrameIndex(n), Access::Read).unwrap();
    }
    assert!(engine.is_whole());
    engine.removed(5..9).unwrap();
    assert!(engine.is_whole(), "frames that the guest gave back are zeros");
}

/// A source whose deliveries and errors a test scripts.
#[derive(Default)]
struct ScriptedSource {
    requested: Mutex<Vec<(FrameIndex, Priority)>>,
    answers: Mutex<Vec<Result<Vec<FrameIndex>, String>>>,
}

impl PageSource for ScriptedSource {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.requested.lock().extend(frames.iter().map(|frame| (*frame, priority)));
        Ok(())
    }

    fn receive(
        &self,
        _wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        std::thread::sleep(Duration::from_millis(1));
        let answers = std::mem::take(&mut *self.answers.lock());
        for answer in answers {
            let frames = answer.map_err(SourceError::new)?;
            frames.into_iter().for_each(|f| deliver(Delivery::Page(f, &[7; 4096])));
        }
        Ok(())
    }
}

#[test]
fn a_source_that_fails_or_is_silent_stops_the_clone() {
    let source = Arc::new(ScriptedSource::default());
    source.answers.lock().push(Err("no route to host".into()));
    let engine =
        start(&Memory::new(), Arc::clone(&source) as _, Box::new(Demand), EngineOptions::default());
    let error = engine.fault(FrameIndex(1), Access::Read).unwrap_err();
    assert!(error.to_string().ends_with("no route to host"), "{error}");
    assert!(matches!(engine.fault(FrameIndex(2), Access::Read), Err(Stopped::Source(_))));

    let options = EngineOptions { timeout: Duration::from_millis(50), ..EngineOptions::default() };
    let silent = Arc::new(ScriptedSource::default());
    let engine = start(&Memory::new(), Arc::clone(&silent) as _, Box::new(Demand), options);
    let error = engine.fault(FrameIndex(1), Access::Read).unwrap_err();
    assert!(matches!(error, Stopped::Timeout { frame: FrameIndex(1), .. }), "{error}");
    assert_eq!(*silent.requested.lock(), [(FrameIndex(1), Priority::Urgent)]);

    let wrong = Arc::new(ScriptedSource::default());
    wrong.answers.lock().push(Ok(vec![FrameIndex(FRAMES)]));
    let engine = start(&Memory::new(), wrong, Box::new(Demand), EngineOptions::default());
    let error = engine.fault(FrameIndex(0), Access::Read).unwrap_err();
    assert!(error.to_string().contains("frame 700 of a guest with 700"), "{error}");
    let error = engine.fault(FrameIndex(FRAMES), Access::Read).unwrap_err();
    assert!(matches!(error, Stopped::Source(_)), "the first reason counts: {error}");
}

#[test]
fn unrequested_pages_are_dropped() {
    let (memory, source) = (Memory::new(), Arc::new(ScriptedSource::default()));
    source.answers.lock().push(Ok(vec![FrameIndex(9), FrameIndex(1), FrameIndex(1)]));
    let engine =
        start(&memory, Arc::clone(&source) as _, Box::new(Demand), EngineOptions::default());
    engine.fault(FrameIndex(1), Access::Read).unwrap();
    assert_eq!(memory.page(FrameIndex(1)), Some([7; 4096]));
    assert_eq!(memory.page(FrameIndex(9)), None);
    assert_eq!(engine.statistics().total().dropped, 2);
}

#[test]
fn removed_frames_read_as_zeros_whatever_arrives_later() {
    let (memory, source) = (Memory::new(), Arc::new(ScriptedSource::default()));
    let engine =
        start(&memory, Arc::clone(&source) as _, Box::new(Demand), EngineOptions::default());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| engine.fault(FrameIndex(1), Access::Read));
        while source.requested.lock().is_empty() {
            std::thread::yield_now();
        }
        engine.removed(0..3).unwrap();
        source.answers.lock().push(Ok(vec![FrameIndex(1)]));
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(memory.page(FrameIndex(1)), Some(ZERO_PAGE));
    engine.fault(FrameIndex(2), Access::Write).unwrap();
    assert_eq!(memory.page(FrameIndex(2)), Some(ZERO_PAGE));
    assert_eq!(source.requested.lock().len(), 1);
    assert!(matches!(engine.removed(0..FRAMES + 1), Err(Stopped::NoSuchFrame { .. })));
}

#[test]
fn stopping_wakes_waiting_faults() {
    let (memory, source) = (Memory::new(), Arc::new(ScriptedSource::default()));
    let engine = start(
        &memory,
        Arc::clone(&source) as _,
        Box::new(Blind::next(8)),
        EngineOptions::default(),
    );
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|n| {
                let engine = &engine;
                scope.spawn(move || engine.fault(FrameIndex(n % 3), Access::Read))
            })
            .collect();
        while source.requested.lock().len() < 3 {
            std::thread::yield_now();
        }
        engine.stop();
        for thread in waiting {
            assert!(matches!(thread.join().unwrap(), Err(Stopped::Cancelled)));
        }
    });
}
