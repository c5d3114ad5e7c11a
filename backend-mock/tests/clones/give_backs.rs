//! Frames given back at critical moments.

use crate::guest::{Guest, Policy};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, FaultQueue};
use kaleidoscope_core::clone::{Engine, EngineOptions, EngineParts, FreeFrames, LocalSource};
use kaleidoscope_core::prefetch::Access;
use kaleidoscope_mock::clone::MockMemory;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FRAME: FrameIndex = FrameIndex(40);

/// Runs `body` with an engine and two fault threads on a memory.
fn with_engine(body: impl FnOnce(&MockMemory)) -> Engine {
    let guest = Guest::new(100, 3, FreeFrames::Fetch);
    let memory = Arc::new(MockMemory::with_patience(100, Duration::from_secs(60)).unwrap());
    let parts = EngineParts::new(
        Arc::clone(&guest.locality),
        guest.policy(Policy::Demand, 0),
        Arc::new(LocalSource::new(Arc::clone(&guest.snapshot))),
        Arc::clone(&memory) as _,
    )
    .queue(Some(Arc::new(memory.queue())));
    let engine = Engine::start(parts, EngineOptions::default()).unwrap();
    std::thread::scope(|scope| {
        /// Ends the fault threads, also when the test fails.
        struct CloseOnDrop<'m>(&'m MockMemory);
        impl Drop for CloseOnDrop<'_> {
            fn drop(&mut self) {
                self.0.close("the test is over");
            }
        }
        let _closing = CloseOnDrop(&memory);
        for _ in 0..2 {
            scope.spawn(|| engine.serve());
        }
        body(&memory);
    });
    engine
}

fn wait_until(mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_true() && Instant::now() < end {
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn reads_zero(memory: &MockMemory) {
    let mut bytes = [1; 16];
    memory.read(FRAME, 100, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 16]);
}

#[test]
fn frames_given_back_are_zero() {
    with_engine(|memory| {
        memory.read(FRAME, 0, &mut [0]).unwrap();
        memory.give_back(39..42).unwrap();
        reads_zero(memory);
        memory.write(FRAME, 100, b"own").unwrap();
        memory.give_back(40..41).unwrap();
        reads_zero(memory);
    });
}

/// A late duplicate of a fault is handled while the frame is being given back and still has its
/// bytes.
#[test]
fn a_late_fault_on_a_frame_that_is_being_emptied() {
    with_engine(|memory| {
        memory.read(FRAME, 0, &mut [0]).unwrap();
        let given = memory.give_back_with(40..41, || {
            memory.queue().inject(Event::Fault { frame: FRAME, access: Access::Read });
            wait_until(|| memory.statistics().already_there > 0);
        });
        given.unwrap();
        reads_zero(memory);
    });
}

/// A frame that is filled for another vCPU while it is being given back is emptied again.
#[test]
fn a_frame_filled_while_it_is_being_emptied() {
    with_engine(|memory| {
        let given = memory.give_back_with(40..41, || {
            memory.queue().inject(Event::Fault { frame: FRAME, access: Access::Read });
            wait_until(|| memory.is_present(FRAME));
        });
        given.unwrap();
        assert!(!memory.is_present(FRAME));
        reads_zero(memory);
        reads_zero(memory);
    });
}

/// The parent's page is in flight when the frame is given back.
#[test]
fn a_page_that_arrives_too_late_is_dropped() {
    for round in 0..200u32 {
        with_engine(|memory| {
            std::thread::scope(|scope| {
                let vcpu = scope.spawn(|| memory.read(FRAME, 0, &mut [0]));
                if round % 2 == 0 {
                    wait_until(|| memory.queue().events_read() > 0);
                }
                memory.give_back(40..41).unwrap();
                vcpu.join().unwrap().unwrap();
            });
            reads_zero(memory);
            assert_eq!(memory.statistics().brought_back, 0);
        });
    }
}

/// Injected faults without waiters are harmless.
#[test]
fn a_fault_without_a_waiter_is_harmless() {
    let engine = with_engine(|memory| {
        for frame in (0..100).chain(0..100).map(FrameIndex) {
            memory.queue().inject(Event::Fault { frame, access: Access::Unknown });
        }
        wait_until(|| memory.statistics().present() == 100 && memory.queue().is_empty());
        assert_eq!(memory.statistics().present(), 100);
        assert!(memory.queue().read().unwrap().is_none());
    });
    assert_eq!(engine.statistics().total().faults, 100);
}
