//! Clones of several parents on one host with a content store.

use crate::guest::{Guest, Policy, Store};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Delivery, PageSource, Priority, SourceError};
use kaleidoscope_core::clone::{Engine, EngineOptions, EngineParts, FreeFrames, LocalSource};
use kaleidoscope_core::store::{MemoryStore, PageStore};
use kaleidoscope_mock::clone::{MockMemory, MockVm, Program, Threads, Work};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const FRAMES: u32 = 1500;

/// Counts requested frames.
struct Counted(LocalSource, AtomicU64);

impl PageSource for Counted {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.1.fetch_add(frames.len() as u64, Ordering::Relaxed);
        self.0.request(frames, priority)
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        self.0.receive(wait, deliver)
    }
}

/// Numbers of frames that a clone fetched, and that it found on its host.
fn run(guest: &Guest, store: &Arc<dyn PageStore>, seed: u64) -> (u64, u64) {
    let memory = Arc::new(MockMemory::new(FRAMES).unwrap());
    let source =
        Arc::new(Counted(LocalSource::new(Arc::clone(&guest.snapshot)), AtomicU64::new(0)));
    let parts = EngineParts::new(
        Arc::clone(&guest.locality),
        guest.policy(Policy::Aligned, seed),
        Arc::clone(&source) as _,
        Arc::clone(&memory) as _,
    )
    .queue(Some(Arc::new(memory.queue())))
    .local_cache(Some(Arc::new(Store::of(guest, Arc::clone(store)).view)));
    let engine = Arc::new(Engine::start(parts, EngineOptions::default()).unwrap());
    let program = Program { seed, steps: 1500, give_backs: 1, ..Program::default() };
    let vm = MockVm::start(
        memory,
        Arc::clone(&engine) as _,
        Arc::clone(&guest.truth),
        Work::Program(program),
        Threads { vcpus: 2, fault: 2 },
    );
    let report = vm.unwrap().join();
    assert_eq!(report.check(), Ok(()), "{report}");
    assert!(report.is_complete(), "{report}");
    (source.1.load(Ordering::Relaxed), engine.statistics().total().local_cache)
}

#[test]
fn what_one_clone_fetched_no_other_need_fetch() {
    // Two parents with the same contents, and one with other contents.
    let guests = [7, 7, 9].map(|seed| Guest::new(FRAMES, seed, FreeFrames::Fetch));
    let store: Arc<dyn PageStore> = Arc::new(MemoryStore::new(10_000));
    let (first, found) = run(&guests[0], &store, 1);
    assert!(first > 500, "{first}");
    // Zero pages are known from their fingerprints and never fetched.
    assert!(found > 0 && found < first, "{found}");
    let (same, found) = run(&guests[1], &store, 1);
    assert!(same < first / 10 && found > first / 2, "{same} fetched, {found} found");
    let (other, _) = run(&guests[2], &store, 1);
    assert!(other > 500, "{other}");
}

#[test]
fn a_store_that_is_too_small_is_of_little_use_and_does_no_harm() {
    let guests = [7, 7, 9].map(|seed| Guest::new(FRAMES, seed, FreeFrames::Fetch));
    let store: Arc<dyn PageStore> = Arc::new(MemoryStore::new(60));
    std::thread::scope(|scope| {
        for (n, guest) in (0..).zip(guests.iter().cycle().take(9)) {
            let store = &store;
            scope.spawn(move || run(guest, store, n));
        }
    });
    let statistics = store.statistics();
    assert!(statistics.pages <= 60 && statistics.evicted > 500, "{statistics:?}");
    assert_eq!(statistics.pins, 0);
}
