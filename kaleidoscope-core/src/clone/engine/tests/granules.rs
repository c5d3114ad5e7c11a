//! Clones whose frames become resident several at a time.

use super::*;
use crate::prefetch::{Fault, Planner};
use crate::sync::{AtomicUsize, Ordering};
use std::sync::OnceLock;

const GRANULE: u32 = 16;

/// Memory whose granules become visible to the clone once all their frames are installed.
struct LargePageMemory {
    frames: Memory,
    visible: Mutex<Vec<bool>>,
}

impl LargePageMemory {
    fn new() -> Arc<Self> {
        let frames = Arc::into_inner(Memory::new()).unwrap();
        Arc::new(Self {
            frames,
            visible: Mutex::new(vec![false; FRAMES.div_ceil(GRANULE) as usize]),
        })
    }

    fn granule(frame: FrameIndex) -> std::ops::Range<u32> {
        let start = frame.0 / GRANULE * GRANULE;
        start..(start + GRANULE).min(FRAMES)
    }

    /// The frame's page, if its granule is visible.
    fn page(&self, frame: FrameIndex) -> Option<Page> {
        let is_visible = self.visible.lock()[(frame.0 / GRANULE) as usize];
        is_visible.then(|| self.frames.page(frame).unwrap())
    }
}

impl PageInstaller for LargePageMemory {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        let mut visible = self.visible.lock();
        let installed = self.frames.install(frame, page);
        let mut granule = Self::granule(frame).map(FrameIndex);
        if granule.all(|frame| self.frames.page(frame).is_some()) {
            visible[(frame.0 / GRANULE) as usize] = true;
        }
        installed
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.install(frame, &ZERO_PAGE)
    }

    fn wake(&self, _frame: FrameIndex) -> Result<(), InstallError> {
        Ok(())
    }
}

/// Counts requested frames.
struct CountingSource {
    inner: LocalSource,
    requested: AtomicUsize,
}

/// Plans the first 64 frames, except for free ones.
struct FirstFrames;

impl PrefetchPolicy for FirstFrames {
    fn name(&self) -> &'static str {
        "related"
    }

    fn fault(&mut self, _fault: &Fault, planner: &mut Planner<'_>) {
        (0..64).filter(|n| n % 7 != 3).for_each(|n| {
            planner.fetch(FrameIndex(n));
        });
    }
}

impl PageSource for CountingSource {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.requested.fetch_add(frames.len(), Ordering::Relaxed);
        self.inner.request(frames, priority)
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        self.inner.receive(wait, deliver)
    }
}

fn start_large(
    memory: &Arc<LargePageMemory>,
    policy: Box<dyn PrefetchPolicy>,
    options: EngineOptions,
) -> (Engine, Arc<CountingSource>) {
    let inner = LocalSource::new(guest().1);
    let source = Arc::new(CountingSource { inner, requested: AtomicUsize::new(0) });
    let parts = EngineParts {
        locality: guest().0,
        policy,
        source: Arc::clone(&source) as _,
        installer: Arc::clone(memory) as _,
        queue: None,
        clock: Arc::new(SystemClock::new()),
        reservation: None,
        local_cache: None,
    };
    (Engine::start(parts, EngineOptions { granule: GRANULE, ..options }).unwrap(), source)
}

fn expected(frame: u32, free_frames: FreeFrames) -> Page {
    static IMAGE: OnceLock<Arc<VecMemory>> = OnceLock::new();
    let is_zeroed = frame % 7 == 3 && free_frames == FreeFrames::Zero;
    let image = IMAGE.get_or_init(|| guest().1);
    if is_zeroed { ZERO_PAGE } else { snapshot(image, FrameIndex(frame)) }
}

#[test]
fn a_fault_installs_the_whole_granule() {
    for free_frames in [FreeFrames::Zero, FreeFrames::Fetch] {
        let memory = LargePageMemory::new();
        let options = EngineOptions { free_frames, ..EngineOptions::default() };
        let (engine, source) = start_large(&memory, Box::new(Demand), options);
        engine.fault(FrameIndex(37), Access::Read).unwrap();
        for n in 0..FRAMES {
            let there = (32..48).contains(&n).then(|| expected(n, free_frames));
            assert_eq!(memory.page(FrameIndex(n)), there, "{n}");
        }
        let free = (32..48).filter(|n| n % 7 == 3 && free_frames == FreeFrames::Zero).count();
        assert_eq!(source.requested.load(Ordering::Relaxed), 16 - free);
        let total = engine.statistics().total();
        assert_eq!((total.faults, engine.statistics().stalls()), (1, 1));
        // The last granule is shorter.
        engine.fault(FrameIndex(FRAMES - 1), Access::Write).unwrap();
        assert!(memory.page(FrameIndex(FRAMES - 12)).is_some());
    }
}

#[test]
fn many_threads_with_every_kind_of_feedback() {
    let backgrounds = [Background::Off, Background::Full];
    for (n, feedback) in
        [Feedback::Off, Feedback::Staged, Feedback::Sampled { one_in: 3 }].into_iter().enumerate()
    {
        for free_frames in [FreeFrames::Zero, FreeFrames::Fetch] {
            let memory = LargePageMemory::new();
            let background = backgrounds[n % 2];
            let options = EngineOptions {
                feedback,
                free_frames,
                background,
                staged: 20,
                ..EngineOptions::default()
            };
            let (engine, _) = start_large(&memory, Box::new(Blind::aligned(64)), options);
            std::thread::scope(|scope| {
                for vcpu in 0..4u32 {
                    let (engine, memory) = (&engine, &memory);
                    scope.spawn(move || {
                        for n in 0..600u32 {
                            let frame = FrameIndex((n * (vcpu * 2 + 1) * 37) % FRAMES);
                            if memory.page(frame).is_none() {
                                engine.fault(frame, Access::Read).unwrap();
                            }
                            let page = memory.page(frame).unwrap();
                            // Free frames may be fetched, too: the policy does not see colors.
                            let fetched = page == expected(frame.0, FreeFrames::Fetch);
                            assert!(fetched || page == expected(frame.0, free_frames), "{frame}");
                        }
                    });
                }
            });
        }
    }
}

#[test]
fn prefetched_granules_are_visible_without_a_fault() {
    let memory = LargePageMemory::new();
    let options = EngineOptions { free_frames: FreeFrames::Zero, ..EngineOptions::default() };
    // One fault plans 64 frames: three more granules, whose free frames are filled with zeros.
    let (engine, _) = start_large(&memory, Box::new(FirstFrames), options);
    engine.fault(FrameIndex(0), Access::Read).unwrap();
    let start = std::time::Instant::now();
    while !(0..64).all(|n| memory.page(FrameIndex(n)).is_some()) {
        assert!(start.elapsed() < Duration::from_secs(120));
        std::thread::yield_now();
    }
    assert!((0..64).all(|n| memory.page(FrameIndex(n)) == Some(expected(n, FreeFrames::Zero))));
}
