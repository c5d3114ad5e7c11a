//! Many clones of one parent at once.

use crate::guest::{Guest, Policy};
use kaleidoscope_core::clone::ports::SystemClock;
use kaleidoscope_core::clone::{
    Background, Engine, Feedback, FreeFrames, LocalSource, Options, Parts,
};
use kaleidoscope_mock::clone::{MockMemory, MockVm, Program, Threads, Work};
use std::sync::Arc;

#[test]
fn sixty_four_clones_of_one_parent() {
    const FRAMES: u32 = 3000;
    let guest = Guest::new(FRAMES, 7, FreeFrames::Fetch);
    let clones: Vec<_> = (0..64u64)
        .map(|n| {
            let memory = Arc::new(MockMemory::new(FRAMES).unwrap());
            let policy = [Policy::Demand, Policy::Aligned, Policy::Colored, Policy::Wild];
            let feedback = if n % 3 == 0 { Feedback::Staged } else { Feedback::Off };
            let background = if n % 8 == 7 { Background::Full } else { Background::Off };
            let parts = Parts {
                atlas: Arc::clone(&guest.atlas),
                policy: guest.policy(policy[usize::try_from(n % 4).unwrap()], n),
                source: Arc::new(LocalSource::new(Arc::clone(&guest.frozen))),
                placer: Arc::clone(&memory) as _,
                queue: Some(Arc::new(memory.queue())),
                clock: Arc::new(SystemClock::new()),
            };
            let options = Options { feedback, background, ..Options::default() };
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
