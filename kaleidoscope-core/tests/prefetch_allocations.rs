//! Policies allocate only while they are built.
#![expect(unsafe_code, reason = "allocators are unsafe by nature; this one only counts")]

#[path = "prefetch/maps.rs"]
mod maps;
#[path = "prefetch/policies.rs"]
mod policies;

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::prefetch::{Access, Fault, LocalityOrder, Plan, PrefetchOutcome, Presence};
use kaleidoscope_mock::Rng;
use maps::{Recipe, map};
use policies::policies;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting each thread's calls.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract.
// Growing a block goes through `alloc`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise about `layout` is the one that the system's allocator asks
        // for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the block came from `alloc`, that is, from the system's allocator, with this
        // layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Calls of the allocator, either way, during `f`.
fn calls(f: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    f();
    CALLS.get() - before
}

/// A clone that gets what it asks for.
struct Present(Vec<bool>);

impl Presence for Present {
    fn is_absent(&self, frame: FrameIndex) -> bool {
        self.0.get(frame.as_usize()) == Some(&false)
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(calls(|| drop(vec![1_u8; 100])), 2);
    let mut grows = Vec::with_capacity(1);
    assert!(calls(|| grows.extend([1_u8; 100])) > 0);
}

#[test]
fn decisions_allocate_nothing() {
    for (free_percent, seed) in [(0, 1), (40, 2), (100, 3)] {
        let ram = vec![(0, 200), (5, 255), (1, 255), (200, 255), (3, 255)];
        let locality = Arc::new(LocalityOrder::new(map(&Recipe {
            ram,
            regions: 90,
            free_percent,
            run: 30,
            seed,
        })));
        for mut policy in policies(&locality) {
            let mut rng = Rng::new(seed);
            let mut present = Present(vec![false; locality.map().len()]);
            let mut plan = Plan::new(Arc::clone(&locality), 256);
            // What a plan takes for each GiB of the guest; this one is smaller.
            let _ = plan.begin(&present, Some(FrameIndex(0)));
            let total = calls(|| {
                for round in 0..4000_u32 {
                    let frame = u32::try_from(rng.below(u64::from(locality.frames()) + 9));
                    let frame = FrameIndex(frame.unwrap_or(u32::MAX));
                    let in_flight = rng.one_in(9);
                    let fault = Fault { frame, access: Access::Write, in_flight };
                    if rng.one_in(5) {
                        policy.background(&mut plan.begin(&present, None));
                    } else {
                        policy.fault(&fault, &mut plan.begin(&present, Some(frame)));
                    }
                    for planned in plan.fetch().iter().chain(plan.zero()) {
                        present.0[planned.as_usize()] = true;
                    }
                    policy.feedback(
                        frame,
                        [PrefetchOutcome::Used, PrefetchOutcome::Unused][usize::from(in_flight)],
                    );
                    if round.is_multiple_of(100) {
                        present.0.fill(false);
                    }
                }
            });
            assert_eq!(total, 0, "{} called the allocator", policy.name());
        }
    }
}
