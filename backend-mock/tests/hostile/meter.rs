//! Cost of a run: time and peak memory.
#![expect(unsafe_code, reason = "allocators are unsafe by nature; this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::mpsc;
use std::time::{Duration, Instant};

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The system allocator, counting bytes per thread: coloring runs on one thread, and several tests
/// run at the same time.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is forwarded unchanged to the system allocator, which upholds the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.get().saturating_add(layout.size());
        ALLOCATED.set(now);
        PEAK.set(PEAK.get().max(now));
        // SAFETY: the caller upholds `GlobalAlloc::alloc`'s requirement on `layout`, which is also the
        // system allocator's.
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
        // SAFETY: the block came from `alloc`, and so from the system allocator, with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Cost of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) time: Duration,
    /// Peak of allocated bytes, beyond those at the start.
    pub(crate) peak: usize,
}

/// Measures a run. If it exceeds `limit`, the process ends with a message that names the run.
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
