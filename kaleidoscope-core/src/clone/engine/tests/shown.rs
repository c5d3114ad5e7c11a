//! Clones with frames that are mapped from the start.

use super::*;
use std::ops::Range;

/// Memory with frames that are mapped from the start. Installing one of them fails the test.
struct PremappedMemory {
    memory: Arc<Memory>,
    shown: Vec<Range<u32>>,
    woken: Mutex<Vec<FrameIndex>>,
}

impl PremappedMemory {
    fn new(shown: &[Range<u32>]) -> Arc<Self> {
        let memory = Memory::new();
        let image = guest().1;
        for frame in shown.iter().cloned().flatten().filter(|frame| *frame < FRAMES) {
            let page = snapshot(&image, FrameIndex(frame));
            memory.pages.lock()[frame as usize] = Some(Box::new(page));
        }
        Arc::new(Self { memory, shown: shown.to_vec(), woken: Mutex::default() })
    }

    fn start(
        self: &Arc<Self>,
        source: Arc<dyn PageSource>,
        options: EngineOptions,
        reservation: Option<Reservation>,
    ) -> Engine {
        let parts = EngineParts {
            locality: guest().0,
            policy: Box::new(Blind::aligned(16)),
            source,
            installer: Arc::clone(self) as _,
            queue: None,
            clock: Arc::new(SystemClock::new()),
            reservation,
            local_cache: None,
        };
        Engine::start(parts, options).unwrap()
    }
}

impl PageInstaller for PremappedMemory {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        self.memory.install(frame, page)
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.memory.zero(frame)
    }

    fn shown(&self) -> Vec<Range<u32>> {
        self.shown.clone()
    }

    fn wake(&self, frame: FrameIndex) -> Result<(), InstallError> {
        self.woken.lock().push(frame);
        Ok(())
    }
}

/// A source that records which frames were requested.
struct RecordingSource {
    source: LocalSource,
    requested: Mutex<Vec<FrameIndex>>,
}

impl PageSource for RecordingSource {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.requested.lock().extend(frames);
        self.source.request(frames, priority)
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        self.source.receive(wait, deliver)
    }
}

#[test]
fn mapped_frames_are_neither_planned_nor_fetched() {
    // Two ranges overlap, and one reaches past the end.
    let shown = [10..40, 30..40, 200..333, 690..720];
    let count = 30 + 133 + 10;
    let image = guest().1;
    for background in [Background::Off, Background::Full] {
        let memory = PremappedMemory::new(&shown);
        let source = RecordingSource {
            source: LocalSource::new(Arc::clone(&image) as _),
            requested: Mutex::default(),
        };
        let source = Arc::new(source);
        let host = Host::new(HostLimits::for_frames(1 << 20));
        let limits = CloneLimits { frames: 2000, shrink_prefetch_at: 2000, reclaim_at: 2000 };
        let reservation = host.admit(limits).unwrap();
        let options = EngineOptions { background, ..EngineOptions::default() };
        let engine = memory.start(Arc::clone(&source) as _, options, Some(reservation));
        for frame in (0..FRAMES).map(FrameIndex) {
            engine.fault(frame, Access::Read).unwrap();
            assert_eq!(memory.memory.page(frame), Some(snapshot(&image, frame)));
        }
        assert!(engine.is_whole());
        let total = engine.statistics().total();
        assert_eq!(total.local_cache, count);
        let fetched = total.fetched + total.prefetched + total.filled;
        assert_eq!(fetched, u64::from(FRAMES) - count);
        assert_eq!(total.resident, u64::from(FRAMES) - count);
        let requested = source.requested.lock();
        assert!(requested.iter().all(|frame| !shown.iter().any(|run| run.contains(&frame.0))));
        assert!(
            memory.woken.lock().contains(&FrameIndex(10)),
            "a vCPU that waits for a mapped frame is woken"
        );
        // Removing mapped frames uncharges nothing, because they were never charged.
        assert_eq!(host.used(), u64::from(FRAMES) - count);
        engine.removed(10..40).unwrap();
        assert_eq!(host.used(), u64::from(FRAMES) - count);
        engine.removed(0..10).unwrap();
        assert_eq!(host.used(), u64::from(FRAMES) - count - 10);
    }
}
