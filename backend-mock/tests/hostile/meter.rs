//! What a run costs: time, and memory at its peak.
#![expect(unsafe_code, reason = "allocators are unsafe by nature; this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::mpsc;
use std::time::{Duration, Instant};

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting bytes for each thread: coloring runs on one, and tests on
/// several at a time.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.get().saturating_add(layout.size());
        ALLOCATED.set(now);
        PEAK.set(PEAK.get().max(now));
        // SAFETY: the caller's promise about `layout` is the one that the system's allocator asks
        // for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.get().saturating_add(layout.size());
        ALLOCATED.set(now);
        PEAK.set(PEAK.get().max(now));
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        ALLOCATED.set(ALLOCATED.get().saturating_sub(layout.size()));
        // SAFETY: the block came from `alloc`, that is, from the system's allocator, with this
        // layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) time: Duration,
    /// Bytes allocated at the peak, beyond those at the start.
    pub(crate) peak: usize,
}

/// Runs something that must end before `limit`; a run that does not ends the process, naming
/// itself.
pub(crate) fn measure<T>(what: &str, limit: Duration, run: impl FnOnce() -> T) -> (T, Cost) {
    let (done, watched) = mpsc::channel::<()>();
    let name = what.to_owned();
    let watchdog = std::thread::spawn(move || {
        if watched.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name}: still running after {limit:?}");
            std::process::abort();
        }
    });
    let before = ALLOCATED.get();
    PEAK.set(before);
    let start = Instant::now();
    let result = run();
    let cost = Cost { time: start.elapsed(), peak: PEAK.get().saturating_sub(before) };
    drop(done);
    watchdog.join().unwrap();
    (result, cost)
}

#[test]
fn peaks_are_seen() {
    let (kept, cost) = measure("peak", Duration::from_secs(60), || {
        drop(vec![1_u8; 3 << 20]);
        vec![1_u8; 1 << 20]
    });
    assert!((3 << 20..4 << 20).contains(&cost.peak), "{cost:?}");
    drop(kept);
}
