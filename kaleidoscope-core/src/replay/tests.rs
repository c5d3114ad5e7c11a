//! Replays that were computed by hand. Costs: a request takes 50 us, the latency back is 50 us, a
//! page takes 10 us on the link, zeros 20 us; a message holds two pages and a batch three.

use super::*;
use crate::addr::FrameIndex;
use crate::color::{Color, ColorMap, Frame, FrameKind, KernelIdentity};
use crate::memory::MemoryLayout;
use crate::prefetch::{Access, Fault, LocalityOrder, Planner, PrefetchPolicy};
use std::sync::Arc;

const COSTS: CostModel =
    CostModel { fault_us: 100.0, page_us: 10.0, zero_us: 20.0, message_pages: 2, stream_pages: 3 };

/// Frames from here on are free.
const FREE: u32 = 32;

/// Answers each fault according to a script, and streams frames in order.
#[derive(Default)]
struct Scripted {
    /// For each list, a fault on its first frame also fetches the others.
    with: Vec<Vec<u32>>,
    stream: Vec<u32>,
}

impl PrefetchPolicy for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        planner.answer_with_zeros();
        for list in self.with.iter().filter(|list| list[0] == fault.frame.0) {
            list[1..].iter().for_each(|frame| assert!(planner.fetch(FrameIndex(*frame))));
        }
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        self.stream.retain(|frame| {
            planner.is_absent(FrameIndex(*frame)) && !planner.fetch(FrameIndex(*frame))
        });
    }
}

/// Replays touches `(vCPU, us, frame)`.
fn run(touches: &[(u16, u64, u32)], mut policy: Scripted) -> Metrics {
    let layout = MemoryLayout::contiguous(64 << 12).unwrap();
    let frames = (0..64).map(|frame| Frame {
        kind: if frame < FREE { FrameKind::Slab } else { FrameKind::Free },
        color: if frame < FREE { Color::Slab } else { Color::Free },
        ..Frame::default()
    });
    let map = ColorMap::new(layout.clone(), KernelIdentity::default(), frames, Vec::new()).unwrap();
    let touches = touches.iter().map(|&(vcpu, at_us, frame)| Touch {
        at_us,
        frame: FrameIndex(frame),
        access: Access::Read,
        vcpu,
    });
    let trace = Trace::new(touches, &layout);
    replay(&trace, &Arc::new(LocalityOrder::new(map)), &mut policy, &Replay::new(COSTS))
}

/// Faults, late ones, zero faults; covered, prefetched, used.
fn counts(metrics: &Metrics) -> [u32; 6] {
    let Metrics { faults, late, zero_faults, covered, prefetched, used, .. } = *metrics;
    [faults, late, zero_faults, covered, prefetched, used]
}

#[test]
fn a_fault_takes_the_way_there_the_page_and_the_way_back() {
    // Requested at 5, known at 55, on the link until 65, present at 115. The second touch is 7 us
    // later, at 122.
    let metrics = run(&[(0, 5, 1), (0, 12, 2)], Scripted::default());
    assert_eq!(metrics.waits_us, [110.0, 110.0]);
    assert_eq!(counts(&metrics), [2, 0, 0, 0, 0, 0]);
    assert_eq!(metrics.working_set_us, [115, 232, 232]);
    let ends: Vec<_> = metrics.samples.iter().map(|s| (s.at_us, s.touched, s.resident)).collect();
    assert_eq!(ends, [(115, 1, 1), (232, 2, 2)]);
}

#[test]
fn zeros_need_no_link() {
    let metrics = run(&[(0, 5, FREE), (0, 6, FREE + 1)], Scripted::default());
    assert_eq!(metrics.waits_us, [20.0, 20.0]);
    assert_eq!(counts(&metrics), [0, 0, 2, 0, 0, 0]);
    assert_eq!((metrics.transferred, metrics.free_touched, metrics.needed), (0, 2, 0));
    assert_eq!(metrics.samples[1], Sample { at_us: 46, touched: 2, resident: 2 });
}

#[test]
fn a_fault_waits_for_the_end_of_the_message_and_no_longer() {
    // 1 is on the link from 50 to 60; 2 and 3 from 60 to 80, 4 and 5 from 80 to 100.
    // vCPU 1 requests 9 at 15; the parent knows at 65, and sends it from 80 to 90, before 4 and 5.
    // 9 arrives at 140. vCPU 0 continues at 110 and touches 5 at 143, which is on the link from
    // 100 on and arrives at 160.
    let with = vec![vec![1, 2, 3, 4, 5]];
    let touches = [(0, 0, 1), (1, 15, 9), (0, 33, 5)];
    let metrics = run(&touches, Scripted { with, ..Scripted::default() });
    assert_eq!(metrics.waits_us, [17.0, 110.0, 125.0]);
    assert_eq!(counts(&metrics), [2, 1, 0, 0, 4, 1]);
}

#[test]
fn a_late_page_is_sent_ahead() {
    // 1 is on the link from 50 to 60; then 2, 3; 4, 5; 6, 7; 8, 9 in 20 us each.
    // vCPU 1 requests 9 at 12: the parent knows at 62, and sends it from 80 to 90. It arrives at
    // 140.
    let with = vec![vec![1, 2, 3, 4, 5, 6, 7, 8, 9]];
    let metrics =
        run(&[(0, 0, 1), (1, 12, 9), (0, 21, 4)], Scripted { with, ..Scripted::default() });
    // 4 is on the link from 90 to 100 and arrives at 150; vCPU 0 touched it at 110 + 21.
    assert_eq!(metrics.waits_us, [19.0, 110.0, 128.0]);
    assert_eq!(counts(&metrics), [1, 2, 0, 0, 8, 2]);
    assert_eq!(metrics.transferred, 9);
}

#[test]
fn vcpus_wait_for_themselves_alone() {
    // vCPU 0: arrivals at 110 and 220. vCPU 1: requested at 1, known at 51, on the link from 60 to
    // 70, arrives at 120; the next one at 230, because its second fault is known at 170, when the
    // page that vCPU 0 requested at 110 has just left the link.
    let touches = [(0, 0, 1), (1, 1, 2), (0, 0, 3), (1, 1, 4)];
    let sorted = [touches[0], touches[2], touches[1], touches[3]];
    let metrics = run(&sorted, Scripted::default());
    assert_eq!(metrics.waits_us, [110.0, 110.0, 110.0, 119.0]);
    assert_eq!(metrics.stall_us, 449.0);
    assert_eq!(metrics.working_set_us, [120, 230, 230]);
}

#[test]
fn the_background_fills_the_idle_link() {
    // A batch of 3 starts at 0: 20, 21 until 20, then 22 until 30. 1 is requested at 15; no batch
    // starts while the request is in flight. 1 is on the link from 65 to 75 and arrives at 125.
    // Then 23, 24 until 95; 25 until 105; 26, 27 until 125; 28 until 135; 29 until 145. 22 is
    // touched at 126 and present since 80; 29 is touched at 146 and arrives at 195.
    let stream = (20..30).collect();
    let touches = [(0, 15, 1), (0, 16, 22), (0, 36, 29)];
    let metrics = run(&touches, Scripted { stream, ..Scripted::default() });
    assert_eq!(metrics.waits_us, [49.0, 110.0]);
    assert_eq!(counts(&metrics), [1, 1, 0, 1, 10, 2]);
    assert_eq!(metrics.working_set_us, [125, 195, 195]);
}

#[test]
fn the_end_of_time_is_no_error() {
    let metrics = run(&[(0, u64::MAX, 1), (1, u64::MAX, 2)], Scripted::default());
    assert_eq!(counts(&metrics), [2, 0, 0, 0, 0, 0]);
}

#[test]
fn samples_are_few() {
    for touches in [1, 255, 256, 257, 511, 512, 513, 5000] {
        let layout = MemoryLayout::contiguous(5000 << 12).unwrap();
        let frames = vec![Frame::default(); 5000];
        let map = ColorMap::new(layout.clone(), KernelIdentity::default(), frames, Vec::new());
        let touch = |n: u32| Touch {
            at_us: 10 * u64::from(n),
            frame: FrameIndex(n),
            access: Access::Read,
            // Every third vCPU waits while the others continue.
            vcpu: u16::try_from(n % 3).unwrap(),
        };
        let trace = Trace::new((0..touches).map(touch), &layout);
        let locality = Arc::new(LocalityOrder::new(map.unwrap()));
        let metrics = replay(&trace, &locality, &mut Scripted::default(), &Replay::new(COSTS));
        assert!((1..=256).contains(&metrics.samples.len()), "{touches} touches");
        assert_eq!(metrics.samples.last().unwrap().touched, touches);
        assert!(metrics.samples.is_sorted_by_key(|s| s.at_us));
    }
}
