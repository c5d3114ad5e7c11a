//! Siblings over a source that reorders, repeats and delays.

use super::*;
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::clone::ports::{Delivery, PageSource, Priority, SourceError};
use crate::memory::Page;
use parking_lot::{Condvar, Mutex};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Watchdog timeout, far above the duration of any test.
const LONG: Duration = Duration::from_secs(60);

/// The page of a frame; each byte is a function of frame and offset.
fn page(frame: FrameIndex) -> Page {
    let mut page = [0; FRAME_BYTES];
    for (at, byte) in page.iter_mut().enumerate() {
        *byte = (u64::from(frame.0) << 12 | at as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_be_bytes()[0];
    }
    page
}

fn expected_delivery(frame: FrameIndex, page: &Page) -> Delivery<'_> {
    match frame.0 % 16 {
        3 => Delivery::Zero(frame),
        5 => Delivery::Unavailable(frame),
        _ => Delivery::Page(frame, page),
    }
}

fn check(delivery: Delivery<'_>) -> FrameIndex {
    let frame = delivery.frame();
    assert_eq!(delivery, expected_delivery(frame, &page(frame)), "frame {frame}");
    frame
}

/// The splitmix64 generator.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }
}

/// Delivers requested frames in random order and batch sizes, some of them twice.
struct Upstream {
    state: Mutex<Queue>,
    changed: Condvar,
    /// Number of deliveries after which it fails.
    fails_after: usize,
    delivered: AtomicUsize,
}

struct Queue {
    rng: Rng,
    held_back: bool,
    frames: Vec<FrameIndex>,
    requests: HashMap<(u32, Priority), usize>,
}

impl Upstream {
    fn new(seed: u64, fails_after: usize) -> Arc<Self> {
        let queue = Queue {
            rng: Rng(seed),
            held_back: false,
            frames: Vec::new(),
            requests: HashMap::new(),
        };
        Arc::new(Self {
            state: Mutex::new(queue),
            changed: Condvar::new(),
            fails_after,
            delivered: AtomicUsize::new(0),
        })
    }

    fn hold_back(&self, held_back: bool) {
        self.state.lock().held_back = held_back;
        self.changed.notify_all();
    }

    fn requests(&self, frame: u32, priority: Priority) -> usize {
        self.state.lock().requests.get(&(frame, priority)).copied().unwrap_or(0)
    }
}

impl PageSource for Upstream {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        let mut state = self.state.lock();
        for &frame in frames {
            *state.requests.entry((frame.0, priority)).or_default() += 1;
            state.frames.push(frame);
        }
        self.changed.notify_all();
        Ok(())
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let until = Instant::now() + wait;
        let mut frames = Vec::new();
        {
            let mut state = self.state.lock();
            while state.frames.is_empty() || state.held_back {
                if self.changed.wait_until(&mut state, until).timed_out() {
                    return Ok(());
                }
            }
            let most = state.frames.len();
            for _ in 0..=state.rng.below(most) {
                let left = state.frames.len();
                let at = state.rng.below(left);
                let frame = match state.rng.below(8) {
                    0 => state.frames[at],
                    _ => state.frames.swap_remove(at),
                };
                frames.push(frame);
                if state.frames.is_empty() {
                    break;
                }
            }
        }
        for frame in frames {
            if self.delivered.fetch_add(1, Ordering::SeqCst) >= self.fails_after {
                return Err(SourceError::new("the cable is cut"));
            }
            deliver(expected_delivery(frame, &page(frame)));
        }
        Ok(())
    }

    fn window(&self) -> usize {
        77
    }
}

/// Requests frames in parts, receives until all have arrived, and returns their number.
fn run_clone(sibling: &Sibling, wants: &[u32], seed: u64) -> Result<usize, SourceError> {
    let mut rng = Rng(seed);
    let mut missing: HashSet<_> = wants.iter().copied().map(FrameIndex).collect();
    let mut asked = 0;
    let start = Instant::now();
    while !missing.is_empty() {
        let more = rng.below(20).min(wants.len() - asked);
        let frames: Vec<_> = wants[asked..asked + more].iter().copied().map(FrameIndex).collect();
        asked += more;
        let priority = if rng.below(3) == 0 { Priority::Urgent } else { Priority::Prefetch };
        sibling.request(&frames, priority)?;
        if asked > 0 && rng.below(4) == 0 {
            // A fault on a frame that may be in flight, ready, or present.
            let frame = FrameIndex(wants[rng.below(asked)]);
            if missing.contains(&frame) {
                sibling.request(&[frame], Priority::Urgent)?;
            }
        }
        let wait = Duration::from_millis(if asked == wants.len() { 200 } else { 0 });
        sibling.receive(wait, &mut |delivery| {
            missing.remove(&check(delivery));
        })?;
        assert!(start.elapsed() < LONG, "{} frames never came: {missing:?}", missing.len());
    }
    Ok(wants.len())
}

/// Frames in random order, some of them twice.
fn frames_to_request() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..200_u32, 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn each_frame_crosses_once(
        seed in any::<u64>(),
        request_lists in prop::collection::vec(frames_to_request(), 1..6),
    ) {
        let upstream = Upstream::new(seed, usize::MAX);
        let shared = Shared::new(Arc::clone(&upstream) as _, 200, 200).unwrap();
        thread::scope(|scope| {
            for (n, wants) in (0..).zip(&request_lists) {
                let sibling = shared.sibling();
                scope.spawn(move || run_clone(&sibling, wants, seed ^ n).unwrap());
            }
        });
        let distinct: HashSet<_> = request_lists.iter().flatten().copied().collect();
        let statistics = shared.statistics();
        prop_assert_eq!(statistics.fetched, distinct.len() as u64);
        prop_assert_eq!(statistics.missed, 0);
        prop_assert_eq!(statistics.siblings, 0);
        let pages = distinct.iter().filter(|frame| !matches!(*frame % 16, 3 | 5)).count();
        prop_assert_eq!(statistics.kept, pages);
        for frame in 0..200 {
            let asked = upstream.requests(frame, Priority::Prefetch);
            let urgently = upstream.requests(frame, Priority::Urgent);
            // Only a promotion requests a frame again.
            prop_assert!(asked <= 1 && urgently <= 1, "{}: {} {}", frame, asked, urgently);
            prop_assert_eq!(asked + urgently > 0, distinct.contains(&frame));
        }
    }

    #[test]
    fn a_small_bound_holds_and_every_sibling_progresses(
        seed in any::<u64>(),
        bound in 1..20_usize,
        request_lists in prop::collection::vec(frames_to_request(), 1..6),
    ) {
        let upstream = Upstream::new(seed, usize::MAX);
        let shared = Shared::new(upstream as _, 200, bound).unwrap();
        thread::scope(|scope| {
            for (n, wants) in (0..).zip(&request_lists) {
                let sibling = shared.sibling();
                scope.spawn(move || run_clone(&sibling, wants, seed ^ n).unwrap());
            }
        });
        prop_assert!(shared.statistics().kept <= bound);
    }

    #[test]
    fn a_failure_reaches_every_sibling(
        seed in any::<u64>(),
        fails_after in 0..300_usize,
        request_lists in prop::collection::vec(frames_to_request(), 1..6),
    ) {
        let upstream = Upstream::new(seed, fails_after);
        let shared = Shared::new(upstream as _, 200, 64).unwrap();
        let ended: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(&request_lists)
                .map(|(n, wants)| {
                    let sibling = shared.sibling();
                    scope.spawn(move || run_clone(&sibling, wants, seed ^ n))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for error in ended.into_iter().filter_map(Result::err) {
            prop_assert!(error.to_string().contains("the cable is cut"), "{}", error);
        }
    }
}

fn shared(upstream: &Arc<Upstream>, bound: usize) -> Shared {
    Shared::new(Arc::clone(upstream) as _, 10_000, bound).unwrap()
}

fn receive_all(sibling: &Sibling, mut missing: HashSet<u32>) {
    let start = Instant::now();
    while !missing.is_empty() {
        sibling
            .receive(Duration::from_millis(200), &mut |delivery| {
                missing.remove(&check(delivery).0);
            })
            .unwrap();
        assert!(start.elapsed() < LONG, "never came: {missing:?}");
    }
}

#[test]
fn an_urgent_request_promotes_a_prefetch() {
    let upstream = Upstream::new(1, usize::MAX);
    upstream.hold_back(true);
    let shared = shared(&upstream, 100);
    let (a, b) = (shared.sibling(), shared.sibling());
    assert_eq!(a.window(), 77);
    a.request(&[FrameIndex(1), FrameIndex(2)], Priority::Prefetch).unwrap();
    b.request(&[FrameIndex(2)], Priority::Prefetch).unwrap();
    b.request(&[FrameIndex(2)], Priority::Urgent).unwrap();
    b.request(&[FrameIndex(2)], Priority::Urgent).unwrap();
    a.request(&[FrameIndex(2)], Priority::Urgent).unwrap();
    assert_eq!(upstream.requests(2, Priority::Prefetch), 1);
    assert_eq!(upstream.requests(2, Priority::Urgent), 1);
    assert_eq!(upstream.requests(1, Priority::Urgent), 0);
    assert_eq!(shared.statistics().promoted, 1);
    upstream.hold_back(false);
    receive_all(&a, HashSet::from([1, 2]));
    receive_all(&b, HashSet::from([2]));
    assert!(a.request(&[FrameIndex(10_000)], Priority::Urgent).is_err());
}

#[test]
fn urgent_frames_are_handed_over_first() {
    let upstream = Upstream::new(1, usize::MAX);
    let shared = shared(&upstream, 100);
    let (a, b) = (shared.sibling(), shared.sibling());
    let frames: Vec<_> = (100..140).map(FrameIndex).collect();
    a.request(&frames, Priority::Prefetch).unwrap();
    receive_all(&a, (100..140).collect());
    b.request(&frames, Priority::Prefetch).unwrap();
    b.request(&[FrameIndex(139), FrameIndex(120)], Priority::Urgent).unwrap();
    let mut order = Vec::new();
    b.receive(LONG, &mut |delivery| order.push(check(delivery).0)).unwrap();
    assert_eq!(order.len(), 40);
    assert_eq!(order[..3], [139, 120, 100]);
}

#[test]
fn a_waiting_sibling_receives_cached_frames() {
    let upstream = Upstream::new(1, usize::MAX);
    let shared = shared(&upstream, 100);
    let (a, b) = (shared.sibling(), shared.sibling());
    a.request(&[FrameIndex(1)], Priority::Urgent).unwrap();
    receive_all(&a, HashSet::from([1]));
    upstream.hold_back(true);
    b.request(&[FrameIndex(2)], Priority::Urgent).unwrap();
    thread::scope(|scope| {
        // It waits for a frame that does not arrive, and receives the cached one.
        let waits =
            scope.spawn(|| b.receive(LONG * 2, &mut |delivery| assert_eq!(check(delivery).0, 1)));
        let start = Instant::now();
        b.request(&[FrameIndex(1)], Priority::Urgent).unwrap();
        waits.join().unwrap().unwrap();
        assert!(start.elapsed() < LONG);
    });
    let nothing = b.receive(Duration::from_millis(1), &mut |_| panic!("nothing is there"));
    nothing.unwrap();
}

#[test]
fn dead_and_slow_siblings_delay_no_other() {
    let upstream = Upstream::new(9, usize::MAX);
    let shared = shared(&upstream, 50);
    let frames: Vec<_> = (0..500).map(FrameIndex).collect();
    let (dead, gone, slow) = (shared.sibling(), shared.sibling(), shared.sibling());
    for sibling in [&dead, &gone, &slow] {
        sibling.request(&frames, Priority::Prefetch).unwrap();
    }
    drop(gone);
    slow.request(&[FrameIndex(9_999)], Priority::Urgent).unwrap();
    thread::scope(|scope| {
        let (go, gate) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            // Blocks in the first delivery until the others have all frames.
            let mut gate = Some(gate);
            slow.receive(LONG, &mut |delivery| {
                check(delivery);
                if let Some(gate) = gate.take() {
                    gate.recv_timeout(LONG).unwrap();
                }
            })
            .unwrap();
        });
        let others: Vec<_> = (0..3)
            .map(|_| {
                let sibling = shared.sibling();
                let all: Vec<u32> = (0..500).collect();
                scope.spawn(move || run_clone(&sibling, &all, 5).unwrap())
            })
            .collect();
        for other in others {
            other.join().unwrap();
        }
        go.send(()).unwrap();
    });
    receive_all(&dead, (0..500).collect());
}

#[test]
fn a_source_that_panics_is_a_failure() {
    struct Bad;
    impl PageSource for Bad {
        fn request(&self, _: &[FrameIndex], _: Priority) -> Result<(), SourceError> {
            Ok(())
        }
        fn receive(&self, _: Duration, _: &mut dyn FnMut(Delivery<'_>)) -> Result<(), SourceError> {
            panic!("a defect")
        }
    }
    let shared = Shared::new(Arc::new(Bad), 10, 10).unwrap();
    let sibling = shared.sibling();
    let start = Instant::now();
    let error = sibling.receive(LONG * 2, &mut |_| {}).unwrap_err().to_string();
    assert!(error.ends_with("panicked: a defect"), "{error}");
    assert!(sibling.request(&[FrameIndex(1)], Priority::Urgent).is_err());
    assert!(start.elapsed() < LONG);
}

#[test]
fn the_thread_ends_with_the_last_sibling() {
    let upstream = Upstream::new(1, usize::MAX);
    let shared = shared(&upstream, 100);
    let sibling = shared.sibling();
    drop(shared);
    sibling.request(&[FrameIndex(1)], Priority::Urgent).unwrap();
    receive_all(&sibling, HashSet::from([1]));
    drop(sibling);
    let start = Instant::now();
    while Arc::strong_count(&upstream) > 1 {
        assert!(start.elapsed() < LONG);
        thread::sleep(Duration::from_millis(5));
    }
}
