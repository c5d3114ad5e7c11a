//! Runs of frames that arrive together.

use super::*;
use std::ops::Range;

/// Memory whose runs stop at every third frame, as if an event had to be read first.
struct Hesitant {
    memory: Arc<Memory>,
    runs: Mutex<Vec<Range<u32>>>,
}

impl PageInstaller for Hesitant {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        self.memory.install(frame, page)
    }

    fn install_run(&self, first: FrameIndex, pages: &[Page]) -> Result<u32, InstallError> {
        let len = u32::try_from(pages.len()).unwrap();
        self.runs.lock().push(first.0..first.0 + len);
        let mut done = 0;
        for (frame, page) in (first.0..).zip(pages).take_while(|(frame, _)| frame % 3 != 0) {
            assert_eq!(self.install(FrameIndex(frame), page)?, Installed::Installed);
            done += 1;
        }
        Ok(done)
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.memory.zero(frame)
    }

    fn wake(&self, frame: FrameIndex) -> Result<(), InstallError> {
        self.memory.wake(frame)
    }
}

#[test]
fn neighbors_are_installed_together_and_stopped_runs_go_on() {
    let (locality, image) = guest();
    let memory = Memory::new();
    let hesitant = Arc::new(Hesitant { memory: Arc::clone(&memory), runs: Mutex::default() });
    let policy = Box::new(Blind::aligned(32));
    let parts = EngineParts::new(locality, policy, local(), Arc::clone(&hesitant) as _);
    let engine = Engine::start(parts, EngineOptions::default()).unwrap();
    for first in (0..FRAMES).step_by(32) {
        engine.fault(FrameIndex(first), Access::Read).unwrap();
    }
    while engine.statistics().total().resident < u64::from(FRAMES) {
        assert!(engine.stopped().is_none());
        std::thread::yield_now();
    }
    for frame in (0..FRAMES).map(FrameIndex) {
        assert_eq!(memory.page(frame), Some(snapshot(&image, frame)), "{frame}");
    }
    let total = engine.statistics().total();
    assert_eq!(total.fetched + total.prefetched, u64::from(FRAMES));
    let runs = hesitant.runs.lock();
    assert!(runs.iter().all(|run| (1..=32).contains(&run.len())), "{runs:?}");
    assert!(runs.iter().any(|run| run.len() >= 4), "{runs:?}");
    // Frame 5 of every 7 is zeros, which are no part of a run of pages.
    assert!(runs.iter().all(|run| run.clone().all(|frame| frame % 7 != 5)), "{runs:?}");
}

/// Frames that are no longer requested when their run arrives are left out of it.
#[test]
fn frames_that_arrive_twice_are_dropped() {
    let memory = Memory::new();
    let source = Arc::new(ScriptedSource::default());
    let frames = |numbers: &[u32]| Ok(numbers.iter().copied().map(FrameIndex).collect());
    source.answers.lock().push(frames(&[64, 65, 66, 67]));
    source.answers.lock().push(frames(&[65, 66, 67, 68, 69]));
    let policy = Box::new(Blind::aligned(32));
    let engine = start(&memory, Arc::clone(&source) as _, policy, EngineOptions::default());
    engine.fault(FrameIndex(69), Access::Read).unwrap();
    while engine.statistics().total().resident < 6 {
        assert!(engine.stopped().is_none());
        std::thread::yield_now();
    }
    assert!((64..70).all(|frame| memory.page(FrameIndex(frame)) == Some([7; 4096])));
    assert_eq!(engine.statistics().total().dropped, 3);
}
