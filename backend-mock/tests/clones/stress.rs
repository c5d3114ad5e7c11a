//! Many clones of one parent at once.

use crate::guest::{Guest, Policy};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, FaultQueue, PageInstaller};
use kaleidoscope_core::clone::{
    Background, Engine, EngineOptions, EngineParts, Feedback, FreeFrames, LocalSource,
};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::prefetch::Access;
use kaleidoscope_core::replay::{Touch, Trace};
use kaleidoscope_mock::Rng;
use kaleidoscope_mock::clone::pattern::Pattern;
use kaleidoscope_mock::clone::{Handler, MockMemory, MockParent, MockVm, Program, Threads, Work};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn sixty_four_clones_of_one_parent() {
    const FRAMES: u32 = 3000;
    let guest = Guest::new(FRAMES, 7, FreeFrames::Fetch);
    let clones: Vec<_> = (0..64u64)
        .map(|n| {
            let memory = Arc::new(MockMemory::new(FRAMES).unwrap());
            let policy = [Policy::Demand, Policy::Aligned, Policy::Colored, Policy::Random];
            let feedback = if n % 3 == 0 { Feedback::Staged } else { Feedback::Off };
            let background = if n % 8 == 7 { Background::Full } else { Background::Off };
            let parts = EngineParts::new(
                Arc::clone(&guest.locality),
                guest.policy(policy[usize::try_from(n % 4).unwrap()], n),
                Arc::new(LocalSource::new(Arc::clone(&guest.snapshot))),
                Arc::clone(&memory) as _,
            )
            .queue(Some(Arc::new(memory.queue())));
            let options = EngineOptions::default().feedback(feedback).background(background);
            let engine = Arc::new(Engine::start(parts, options).unwrap());
            let program = Program { seed: n, steps: 2000, give_backs: 2, ..Program::default() };
            let vm = MockVm::start(
                memory,
                Arc::clone(&engine) as _,
                Arc::clone(&guest.truth),
                Work::Program(program),
                Threads { vcpus: 4, fault: 1 },
            );
            (engine, vm.unwrap())
        })
        .collect();
    for (engine, vm) in clones {
        let report = vm.join();
        assert_eq!(report.check(), Ok(()), "{report}\n{engine:?}");
        assert!(report.is_complete(), "{report}\n{engine:?}");
        assert!(report.done.reads > 4 * 1000 && report.done.given_back > 0, "{report}");
    }
    assert!(guest.writers.written() > 0);
}

/// Replays a trace's touches on their vCPUs, a hundred times as fast.
#[test]
fn a_trace_is_replayed() {
    const FRAMES: u32 = 2000;
    let guest = Guest::new(FRAMES, 9, FreeFrames::Fetch);
    let mut rng = Rng::new(9);
    let touches: Vec<_> = (0..1500)
        .map(|n| Touch {
            at_us: n * 100,
            frame: FrameIndex(u32::try_from(rng.below(u64::from(FRAMES))).unwrap()),
            access: if rng.one_in(3) { Access::Write } else { Access::Read },
            vcpu: u16::try_from(rng.below(6)).unwrap(),
        })
        .collect();
    let trace = Arc::new(Trace::new(touches, guest.locality.layout()));
    let memory = Arc::new(MockMemory::new(FRAMES).unwrap());
    let parts = EngineParts::new(
        Arc::clone(&guest.locality),
        guest.policy(Policy::Colored, 0),
        Arc::new(LocalSource::new(Arc::clone(&guest.snapshot))),
        Arc::clone(&memory) as _,
    )
    .queue(Some(Arc::new(memory.queue())));
    let engine = Arc::new(Engine::start(parts, EngineOptions::default()).unwrap());
    let work = Work::Trace { trace: Arc::clone(&trace), pace: 0.01 };
    let truth = Arc::clone(&guest.truth);
    let vm = MockVm::start(memory, engine, truth, work, Threads::default()).unwrap();
    let report = vm.join();
    assert_eq!(report.check(), Ok(()), "{report}");
    assert!(report.is_complete(), "{report}");
    // Every frame of the trace is needed exactly once, and no other frame is.
    assert_eq!(report.memory.needed, trace.touches().len() as u64, "{report}");
    assert!(report.memory.coverage() > 0.0 && report.memory.coverage() < 1.0, "{report}");
}

/// Handlers do not depend on the memory's size: 64 GiB cost nothing until they are touched.
#[test]
fn large_memories_start_empty_at_no_cost() {
    struct Zeros(Arc<MockMemory>);
    impl Handler for Zeros {
        fn serve(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let queue = self.0.queue();
            loop {
                queue.wait(Duration::from_millis(20))?;
                match queue.read()? {
                    Some(Event::Fault { frame, .. }) => {
                        let _ = self.0.zero(frame)?;
                    }
                    Some(Event::Closed) => return Ok(()),
                    Some(Event::Removed(_)) | None => {}
                }
            }
        }
    }
    // 16 Mi frames (64 GiB) each.
    let vms: Vec<_> = (0..100)
        .map(|seed| {
            let memory = Arc::new(MockMemory::new(16 << 20).unwrap());
            let handler = Arc::new(Zeros(Arc::clone(&memory)));
            let layout = MemoryLayout::contiguous(64 << 30).unwrap();
            let parent = MockParent::new(layout, Pattern::new(0).with(100, 0));
            let truth = Arc::new(parent.freeze());
            let program = Program { seed, steps: 3, ..Program::default() };
            let threads = Threads { vcpus: 1, fault: 1 };
            // One at a time, to limit the number of threads.
            let vm = MockVm::start(memory, handler, truth, Work::Program(program), threads);
            let memory = Arc::clone(vm.as_ref().unwrap().memory());
            assert_eq!(vm.unwrap().join().check(), Ok(()));
            memory
        })
        .collect();
    for memory in vms {
        assert!(memory.resident_pages().unwrap() <= 3);
    }
}
