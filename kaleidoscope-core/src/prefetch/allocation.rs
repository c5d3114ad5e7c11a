//! Forecast of the free frames that a clone will write next, by its kernel's allocation order.

use super::LocalityOrder;
use super::forecast::runs;
use crate::addr::FrameIndex;
use crate::color::{Order, RegionId};
use std::ops::Range;
use std::sync::Arc;

/// Frames that are copied ahead when a stretch is first seen in use.
const FIRST_WINDOW: u32 = 8;

/// Most frames that are copied ahead in one stretch.
const LAST_WINDOW: u32 = 64;

/// Distances beyond a stretch's probe at which further writes are looked for. A CPU takes a whole
/// batch from a list, up to 2016 frames on recent kernels, and the next CPU continues behind that
/// batch.
const PROBE_DISTANCES: [u32; 6] = [64, 128, 256, 512, 1024, 2048];

/// Most stretches of one list that are followed at a time.
const MAX_STRETCHES: usize = 8;

/// A guest's free frames in the order in which its kernel will allocate them, one stream for each
/// of the kernel's free lists. Built once per parent and shared by all of its clones; takes 4 bytes
/// per free frame.
#[derive(Clone, Debug, Default)]
pub struct FreeOrder {
    /// The frames of all streams, one stream after the other.
    frames: Vec<u32>,
    /// Where each stream ends in `frames`.
    ends: Vec<u32>,
}

impl FreeOrder {
    /// The order according to a map's regions of [`Order::Allocation`]. Frames on no list are left
    /// out.
    #[must_use]
    pub fn new(locality: &LocalityOrder) -> Self {
        let mut order = Self::default();
        let positions = locality.map().positions();
        let regions = (0..).map(RegionId).zip(locality.map().regions());
        for (id, _) in regions.filter(|(_, region)| region.order == Order::Allocation) {
            let mut last = None;
            for frame in locality.run(locality.range(id.0)) {
                let position = positions.get(frame.as_usize()).copied();
                let Some(list) = position.and_then(Order::list_of) else { continue };
                if last.is_some_and(|last| last != list) {
                    order.end_stream();
                }
                last = Some(list);
                order.frames.push(frame.0);
            }
            order.end_stream();
        }
        order
    }

    fn end_stream(&mut self) {
        let end = to_u32(self.frames.len());
        if self.ends.last().copied().unwrap_or(0) < end {
            self.ends.push(end);
        }
    }

    /// Number of streams.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.ends.len()
    }

    /// Number of frames in all streams.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    fn at(&self, place: u32) -> Option<FrameIndex> {
        self.frames.get(place as usize).copied().map(FrameIndex)
    }
}

/// Converts a number of frames; a layout has fewer than 2^32.
fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A part of a stream that is allocated from its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stretch {
    stream: u32,
    /// Index of the first frame that was not copied. The frames behind it were not copied either.
    probe: u32,
    /// One past the last index.
    end: u32,
    /// How many frames to copy when the probe is written.
    window: u32,
}

impl Stretch {
    /// Indices beyond the probe where the guest may have continued. None before the first write to
    /// the stretch.
    fn lookahead(self) -> impl Iterator<Item = u32> {
        let distances = PROBE_DISTANCES.into_iter().filter(move |_| self.window > FIRST_WINDOW);
        distances
            .map(move |far| self.probe.saturating_add(far))
            .take_while(move |at| *at < self.end)
    }
}

/// Follows the free lists of a clone that shares its parent's memory. The frames that its kernel
/// will allocate next are copied before the guest writes to them, outside the guest's fault path.
///
/// One frame of each list, the *probe*, is left uncopied. Once the guest has written the probe, the
/// next few frames are copied, and the frame after them becomes the new probe. The number of frames
/// copied at a time doubles from 8 to 64 and never shrinks. So a clone that allocates no frames
/// costs nothing, and one that does has at most 64 frames (256 KiB) more than it wrote per stretch
/// that it allocates from.
///
/// A list is followed at several stretches if CPUs have taken batches from it: a write further on
/// than the probe starts one more stretch. Frames that are freed and allocated again are not
/// tracked, because the guest has written them before.
#[derive(Clone, Debug)]
pub struct AllocationForecast {
    order: Arc<FreeOrder>,
    /// In ascending order of index. They do not overlap.
    stretches: Vec<Stretch>,
}

impl AllocationForecast {
    /// A forecast for one clone that has written nothing yet.
    #[must_use]
    pub fn new(order: Arc<FreeOrder>) -> Self {
        let starts = std::iter::once(0).chain(order.ends.iter().copied());
        let stretches = (0..).zip(starts.zip(&order.ends)).map(|(stream, (probe, end))| Stretch {
            stream,
            probe,
            end: *end,
            window: FIRST_WINDOW,
        });
        let stretches = stretches.collect();
        Self { order, stretches }
    }

    /// The uncopied frames whose writes trigger the next copies. At first these are the first
    /// frames of all streams.
    pub fn probes(&self) -> impl Iterator<Item = FrameIndex> + '_ {
        let places =
            self.stretches.iter().flat_map(|s| std::iter::once(s.probe).chain(s.lookahead()));
        places.filter_map(|place| self.order.at(place))
    }

    /// The frames to copy now: sorted ranges that do not touch. No frame is returned twice.
    ///
    /// `is_written` says whether the guest has written a frame. It is called for
    /// [`probes`](Self::probes) and, if one is written, for the frames after it up to the first
    /// unwritten one; never for frames that were returned. If it knows about probes only and
    /// returns `false` for all other frames, some frames are copied that the guest has already
    /// written.
    pub fn advance(&mut self, mut is_written: impl FnMut(FrameIndex) -> bool) -> Vec<Range<u32>> {
        let Self { order, stretches } = self;
        let mut is_written = |place| order.at(place).is_some_and(&mut is_written);
        let mut ahead = Vec::new();
        let mut number = 0;
        while let Some(stretch) = stretches.get_mut(number) {
            number += 1;
            if !is_written(stretch.probe) {
                let found = stretch.lookahead().find(|place| is_written(*place));
                let stream = stretch.stream;
                if let Some(place) = found {
                    split(stretches, number - 1, stream, place);
                }
                continue;
            }
            let rest = stretch.probe.saturating_add(1)..stretch.end;
            let start = rest.clone().find(|place| !is_written(*place)).unwrap_or(rest.end);
            let end = start.saturating_add(stretch.window).min(stretch.end);
            ahead.extend_from_slice(order.frames.get(start as usize..end as usize).unwrap_or(&[]));
            stretch.probe = end;
            stretch.window = stretch.window.saturating_mul(2).min(LAST_WINDOW);
        }
        stretches.retain(|stretch| stretch.probe < stretch.end);
        ahead.sort_unstable();
        runs(ahead)
    }
}

/// Splits a stretch in two at `place`, unless the stream has `MAX_STRETCHES` already.
fn split(stretches: &mut Vec<Stretch>, number: usize, stream: u32, place: u32) {
    let alike = stretches.iter().filter(|stretch| stretch.stream == stream).count();
    if alike < MAX_STRETCHES
        && let Some(stretch) = stretches.get_mut(number)
    {
        let end = std::mem::replace(&mut stretch.end, place);
        let new = Stretch { stream, probe: place, end, window: FIRST_WINDOW };
        stretches.insert(number + 1, new);
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "sets of frames")]
mod tests {
    use super::*;
    use crate::color::{Color, ColorMap, Frame, FrameKind, Region};
    use crate::memory::MemoryLayout;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The order of a guest whose frames are on these lists (`None`: on no list).
    fn order(lists: &[Option<u32>]) -> Arc<FreeOrder> {
        let layout = MemoryLayout::contiguous((lists.len() as u64) << 12).unwrap();
        let mut given = std::collections::BTreeMap::<u32, u32>::new();
        let frames = (0..).zip(lists).map(|(index, list)| {
            let position = match list {
                Some(list) => {
                    let before = given.entry(*list).or_default();
                    *before += 1;
                    // The last frame is allocated first.
                    Order::position_on_list(*list, u32::MAX - *before)
                }
                None => Order::position_on_list(Order::NO_LIST, index),
            };
            Frame {
                kind: FrameKind::Free,
                color: Color::Free,
                region: Some(RegionId(0)),
                position,
                ..Frame::default()
            }
        });
        let region = Region::new(FrameKind::Free, Order::Allocation, "free");
        let map = ColorMap::new(layout, Default::default(), frames, vec![region]).unwrap();
        Arc::new(FreeOrder::new(&LocalityOrder::new(map)))
    }

    /// A clone that shares its parent's memory.
    struct Clone {
        forecast: AllocationForecast,
        written: BTreeSet<u32>,
        copied: BTreeSet<u32>,
        /// Frames whose copy the clone waited for.
        waits: Vec<u32>,
    }

    impl Clone {
        fn new(order: &Arc<FreeOrder>) -> Self {
            let forecast = AllocationForecast::new(Arc::clone(order));
            Self { forecast, written: BTreeSet::new(), copied: BTreeSet::new(), waits: Vec::new() }
        }

        fn write(&mut self, frame: u32) {
            if self.written.insert(frame) && !self.copied.contains(&frame) {
                self.waits.push(frame);
            }
        }

        fn advance(&mut self) -> Vec<Range<u32>> {
            let Self { forecast, written, copied, .. } = self;
            let ahead = forecast.advance(|frame| {
                assert!(!copied.contains(&frame.0), "copied frames are not asked about");
                written.contains(&frame.0)
            });
            assert!(ahead.iter().all(|run| !run.is_empty()));
            assert!(ahead.windows(2).all(|two| two[0].end < two[1].start), "{ahead:?}");
            for frame in ahead.iter().cloned().flatten() {
                assert!(copied.insert(frame), "frame {frame} was copied before");
            }
            ahead
        }
    }

    #[test]
    fn lists_are_told_apart_and_other_frames_left_out() {
        let order = order(&[Some(1), None, Some(0), Some(1), Some(0), None]);
        assert_eq!((order.streams(), order.frames()), (2, 4));
        assert_eq!(order.frames, [4, 2, 3, 0]);
        let probes: Vec<_> = AllocationForecast::new(order).probes().map(|f| f.0).collect();
        assert_eq!(probes, [4, 3]);
    }

    #[test]
    fn maps_without_lists_give_no_forecast() {
        let order = order(&[None; 20]);
        assert_eq!((order.streams(), order.frames()), (0, 0));
        let mut forecast = AllocationForecast::new(order);
        assert_eq!(forecast.probes().count(), 0);
        assert!(forecast.advance(|_| true).is_empty());
    }

    #[test]
    fn windows_double_to_their_limit() {
        let order = order(&[Some(0); 300]);
        let mut clone = Clone::new(&order);
        assert!(clone.advance().is_empty());
        clone.write(299);
        assert_eq!(clone.advance(), [291..299]);
        assert!(clone.advance().is_empty());
        for (probe, next) in [(290, 274..290), (273, 241..273), (240, 176..240), (175, 111..175)] {
            assert_eq!(clone.forecast.probes().next(), Some(FrameIndex(probe)));
            clone.write(probe);
            assert_eq!(clone.advance(), [next]);
        }
        clone.write(110);
        assert_eq!(clone.advance(), [46..110]);
        clone.write(45);
        assert_eq!(clone.advance(), [0..45], "the stream ends");
        assert_eq!(clone.forecast.probes().count(), 0);
    }

    #[test]
    fn a_forecast_catches_up_with_its_guest() {
        let order = order(&[Some(0); 100]);
        let mut clone = Clone::new(&order);
        (80..100).for_each(|frame| clone.write(frame));
        assert_eq!(clone.advance(), [72..80]);
    }

    /// One CPU has taken a batch and uses it slowly, while another CPU continues behind it.
    #[test]
    fn a_list_is_followed_where_another_cpu_goes_on() {
        let order = order(&[Some(0); 4000]);
        let mut clone = Clone::new(&order);
        let mut slow = (0..2000).map(|taken| 3999 - taken);
        let fast = (2000..4000).map(|taken| 3999 - taken);
        for _ in 0..100 {
            clone.write(slow.next().unwrap());
            clone.advance();
        }
        for frame in fast {
            clone.write(frame);
            clone.advance();
        }
        // The second CPU is not seen until it reaches an index that is looked at.
        assert!(clone.waits.len() < 250, "{}", clone.waits.len());
        let waits = clone.waits.len();
        for frame in slow {
            clone.write(frame);
            clone.advance();
        }
        assert!(clone.waits.len() < waits + 40, "the slow one is still followed");
    }

    proptest! {
        /// A guest that allocates from the front of its lists waits for one frame per window, and
        /// has few frames that it does not need.
        #[test]
        fn a_guest_in_order_waits_only_for_probes(
            lists in proptest::collection::vec(proptest::option::of(0u32..3), 1..1500),
            takes in proptest::collection::vec((0u32..3, 1usize..60), 0..60),
        ) {
            let order = order(&lists);
            let mut clone = Clone::new(&order);
            let mut left: Vec<Vec<u32>> = (0..3)
                .map(|list| {
                    let on_list = (0..).zip(&lists).filter(|(_, l)| **l == Some(list));
                    on_list.map(|(n, _)| n).collect()
                })
                .collect();
            let (mut moving, mut probes) = (BTreeSet::new(), 0);
            for (list, count) in takes {
                for _ in 0..count {
                    let Some(frame) = left[list as usize].pop() else { break };
                    moving.insert(list);
                    probes += usize::from(clone.forecast.probes().any(|probe| probe.0 == frame));
                    clone.write(frame);
                    clone.advance();
                    prop_assert!(clone.copied.len() <= clone.written.len() + 64 * moving.len());
                }
            }
            prop_assert_eq!(clone.waits.len(), probes);
            prop_assert!(clone.waits.len() <= clone.written.len() / 65 + 4 * moving.len());
            prop_assert!(!moving.is_empty() || clone.copied.is_empty());
        }

        /// Whatever is written, and whenever the forecast advances, no frame is copied twice and
        /// no written frame is copied.
        #[test]
        fn nothing_is_copied_twice(
            lists in proptest::collection::vec(proptest::option::of(0u32..2), 1..400),
            writes in proptest::collection::vec((0u32..400, any::<bool>()), 0..400),
        ) {
            let order = order(&lists);
            let mut clone = Clone::new(&order);
            for (frame, looks) in writes {
                clone.write(frame);
                if looks {
                    clone.advance();
                }
            }
            let mut all = 0;
            while clone.advance() != [] as [Range<u32>; 0] {
                all += 1;
                prop_assert!(all < 400);
            }
            let frames: BTreeSet<_> = order.frames.iter().copied().collect();
            prop_assert!(clone.copied.is_subset(&frames));
        }
    }
}
