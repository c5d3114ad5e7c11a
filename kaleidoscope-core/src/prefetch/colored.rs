//! The colored policies: blocks of related frames around faults, and predicted frames.

use super::{Class, Fault, LocalityOrder, Planner, Position, PrefetchPolicy, Settings};
use crate::addr::FrameIndex;
use crate::color::{FrameKind, Order, RegionId};
use bitvec::vec::BitVec;
use std::ops::Range;
use std::sync::Arc;

/// Most free frames that are fetched ahead of the guest's allocator, where they are not filled with
/// zeros. Almost all of the next 64 are used ([`AllocationForecast`](super::AllocationForecast)).
const FREE_AHEAD: u32 = 64;

/// What a colored policy knows about a guest before the first fault. Built once per parent and
/// shared by all of its clones.
#[derive(Clone, Debug)]
pub struct ColorGuide {
    locality: Arc<LocalityOrder>,
    settings: Settings,
    /// Files by the frame that holds their inode, sorted: the frame, and the file's stretch.
    inodes: Vec<(FrameIndex, u32)>,
    /// Frames to stream, in descending priority.
    predicted: Vec<FrameIndex>,
}

impl ColorGuide {
    /// Prepares a guest for a policy.
    #[must_use]
    pub fn new(locality: Arc<LocalityOrder>, settings: Settings) -> Self {
        let regions = (0..).zip(locality.map().regions());
        let files = regions.filter(|(_, region)| region.kind == FrameKind::File);
        let mut inodes: Vec<_> =
            files.filter_map(|(stretch, region)| Some((region.anchor?, stretch))).collect();
        inodes.sort_unstable();
        let predicted = predict(&locality, &settings);
        Self { locality, settings, inodes, predicted }
    }

    /// Replaces the settings. Returns whether the prediction had to be recomputed.
    pub(crate) fn change(&mut self, settings: &Settings) -> bool {
        let predicts_otherwise = self.settings.predict != settings.predict
            || self.settings.predict_caches != settings.predict_caches;
        self.settings.clone_from(settings);
        if predicts_otherwise {
            self.predicted = predict(&self.locality, settings);
        }
        predicts_otherwise
    }

    /// The guest.
    #[must_use]
    pub fn locality(&self) -> &Arc<LocalityOrder> {
        &self.locality
    }

    /// The settings of the policy.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Frames that are likely to be used, the most likely first, derived from the color map alone.
    #[must_use]
    pub fn predicted(&self) -> &[FrameIndex] {
        &self.predicted
    }

    /// Position ranges of the files whose inodes a frame holds.
    fn files_of(&self, inode_frame: FrameIndex) -> impl Iterator<Item = Range<Position>> + '_ {
        let first = self.inodes.partition_point(|(frame, _)| *frame < inode_frame);
        let files = self.inodes.get(first..).unwrap_or(&[]).iter();
        let files = files.take_while(move |(frame, _)| *frame == inode_frame);
        files.map(|(_, stretch)| self.locality.range(*stretch))
    }
}

/// Frames that match the settings' hints and caches, in the settings' order, each once.
fn predict(locality: &LocalityOrder, settings: &Settings) -> Vec<FrameIndex> {
    let mut taken: BitVec = BitVec::repeat(false, locality.frames() as usize);
    let mut out = Vec::new();
    let mut take = |frame: FrameIndex| {
        if !locality.is_free(frame)
            && let Some(mut taken) = taken.get_mut(frame.as_usize())
            && !taken.replace(true)
        {
            out.push(frame);
        }
    };
    // One pass over the frames, however many hints there are.
    let mut by_class = vec![Vec::new(); Class::COUNT];
    for (rank, sign) in settings.predict.iter().enumerate() {
        if let Some(signs) = by_class.get_mut(sign.class.index()) {
            signs.push((rank, sign.signs));
        }
    }
    let mut ranked = vec![Vec::new(); settings.predict.len()];
    for (frame, shown) in (0..).map(FrameIndex).zip(locality.map().temperatures()) {
        let signs = by_class.get(locality.class(frame).index()).into_iter().flatten();
        let first = signs.into_iter().find(|(_, signs)| shown.contains(*signs));
        if let Some(frames) = first.and_then(|(rank, _)| ranked.get_mut(*rank)) {
            frames.push(frame);
        }
    }
    ranked.into_iter().flatten().for_each(&mut take);
    let mut wanted: Vec<&str> = settings.predict_caches.iter().map(String::as_str).collect();
    wanted.sort_unstable();
    for (stretch, region) in (0..).zip(locality.map().regions()) {
        let is_wanted = || wanted.binary_search(&region.name.as_str()).is_ok();
        if region.kind == FrameKind::Slab && is_wanted() {
            locality.run(locality.range(stretch)).iter().copied().for_each(&mut take);
        }
    }
    out
}

/// The policy to start with: blocks of related frames around each fault, and a stream of frames
/// that clones of any guest of the kind are likely to use. Needs no recording.
#[must_use]
pub fn predicted(locality: &Arc<LocalityOrder>) -> Box<dyn PrefetchPolicy> {
    let settings = Settings::shipped_for(locality.map().kernel());
    Box::new(Colored::new(Arc::new(ColorGuide::new(Arc::clone(locality), settings))))
}

/// Blocks of related frames around each fault, with windows by class, and a stream of predicted
/// frames.
///
/// Named `region` without prediction, `predicted` with it.
#[derive(Clone, Debug)]
pub struct Colored {
    guide: Arc<ColorGuide>,
    /// Faults in each stretch so far.
    faults: Vec<u16>,
    /// Index of the next predicted frame to stream.
    next: usize,
}

impl Colored {
    /// A policy for one clone.
    #[must_use]
    pub fn new(guide: Arc<ColorGuide>) -> Self {
        let faults = vec![0; guide.locality.stretches()];
        Self { guide, faults, next: 0 }
    }

    /// The guest's color guide.
    #[must_use]
    pub fn guide(&self) -> &Arc<ColorGuide> {
        &self.guide
    }

    /// Plans the free frames that the guest will access next: those that its allocator hands out
    /// after this one or, if the order is not known, the aligned block around it. They are filled
    /// with zeros where that is allowed, and fetched otherwise, at most `most`.
    fn free_ahead(&self, frame: FrameIndex, most: u32, planner: &mut Planner<'_>) {
        let locality = &self.guide.locality;
        let (Some(place), Some(stretch)) = (locality.position(frame), locality.stretch(frame))
        else {
            return;
        };
        let (within, zeroed) = (locality.range(stretch), planner.allows_zeros());
        let most = if zeroed { u32::MAX } else { most.min(FREE_AHEAD) };
        let pages = self.guide.settings.zero_ahead.min(most);
        let region = locality.map().region(RegionId(stretch));
        let is_in_order = region.is_some_and(|region| region.order == Order::Allocation);
        let ahead = if is_in_order {
            place..place.saturating_add(pages).min(within.end)
        } else {
            block(place, within, pages)
        };
        for frame in locality.run(ahead) {
            if zeroed {
                planner.zero(*frame);
            } else if locality.is_free(*frame) {
                planner.fetch(*frame);
            }
        }
    }

    /// Plans the window around a frame: within its region or, for a small file, among all small
    /// files.
    fn window(&mut self, frame: FrameIndex, most: u32, planner: &mut Planner<'_>) {
        let Self { guide, faults, .. } = self;
        let locality = &guide.locality;
        let (Some(place), Some(stretch)) = (locality.position(frame), locality.stretch(frame))
        else {
            return;
        };
        let window = guide.settings.window(locality.class(frame));
        let clipped = |(cold, hot): (u32, u32)| (cold.min(most), hot.min(most));
        let small = locality.small_files();
        if small.contains(&place) {
            fetch_blocks(locality, place, small, clipped(window.after(0)), planner);
            return;
        }
        let earlier = faults.get_mut(stretch as usize).map_or(0, |count| {
            let earlier = *count;
            *count = count.saturating_add(1);
            u32::from(earlier)
        });
        let blocks = clipped(window.after(earlier));
        fetch_blocks(locality, place, locality.range(stretch), blocks, planner);
    }

    /// Plans the first pages of the files whose inodes lie in a frame.
    fn files(&self, frame: FrameIndex, planner: &mut Planner<'_>) {
        let pages = self.guide.settings.inode_pages;
        if pages == 0 {
            return;
        }
        for file in self.guide.files_of(frame) {
            let head = file.start..file.end.min(file.start.saturating_add(pages));
            for frame in self.guide.locality.run(head) {
                planner.fetch_used(*frame);
            }
        }
    }
}

/// Plans the cold frames of one block around a position, and the hot frames of another.
fn fetch_blocks(
    locality: &LocalityOrder,
    place: Position,
    within: Range<Position>,
    (cold, hot): (u32, u32),
    planner: &mut Planner<'_>,
) {
    let cold = block(place, within.clone(), cold);
    let hot = block(place, within, hot);
    let all = cold.start.min(hot.start)..cold.end.max(hot.end);
    for (at, frame) in all.clone().zip(locality.run(all)) {
        if planner.room() == 0 {
            return;
        }
        let block = if locality.is_hot(*frame) { &hot } else { &cold };
        if block.contains(&at) {
            planner.fetch_used(*frame);
        }
    }
}

/// The block of `pages` positions around `place`, aligned relative to the start of `within` and
/// clipped to its end.
fn block(place: Position, within: Range<Position>, pages: u32) -> Range<Position> {
    let into = place.saturating_sub(within.start);
    let start = within.start + (into - into % pages.max(1));
    start..start.saturating_add(pages.max(1)).min(within.end)
}

impl Colored {
    /// Answers a fault with windows of at most `most` pages.
    pub(super) fn fault_within(&mut self, fault: &Fault, most: u32, planner: &mut Planner<'_>) {
        if planner.answer_with_zeros() || planner.locality().is_free(fault.frame) {
            self.free_ahead(fault.frame, most, planner);
            return;
        }
        self.window(fault.frame, most, planner);
        if most == u32::MAX {
            self.files(fault.frame, planner);
        }
    }
}

impl PrefetchPolicy for Colored {
    fn name(&self) -> &str {
        &self.guide.settings.name
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        self.fault_within(fault, u32::MAX, planner);
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        while planner.room() > 0
            && let Some(frame) = self.guide.predicted.get(self.next)
        {
            planner.fetch_used(*frame);
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::color::{Color, ColorMap, Frame, Region};
    use crate::memory::MemoryLayout;
    use crate::prefetch::{Access, Answer, Plan, Presence};

    struct Nothing;

    impl Presence for Nothing {
        fn is_absent(&self, _: FrameIndex) -> bool {
            true
        }
    }

    /// The frames that are filled with zeros, and those that are fetched, when frame 5 of eight free
    /// frames is accessed. The allocator hands them out from the last to the first.
    fn planned(order: Order, allows_zeros: bool) -> (Vec<u32>, Vec<u32>) {
        let layout = MemoryLayout::contiguous(8 * 4096).unwrap();
        let frames = (0..8).map(|frame| Frame {
            kind: FrameKind::Free,
            color: Color::Free,
            region: Some(RegionId(0)),
            position: if order == Order::Allocation { 7 - frame } else { frame },
            ..Frame::default()
        });
        let regions = vec![Region::new(FrameKind::Free, order, "free")];
        let map = ColorMap::new(layout, Default::default(), frames, regions).unwrap();
        let locality = Arc::new(LocalityOrder::new(map));
        let settings = Settings { zero_ahead: 4, ..Settings::bare("bare") };
        let mut policy = Colored::new(Arc::new(ColorGuide::new(Arc::clone(&locality), settings)));
        let mut plan = Plan::new(locality, 8);
        plan.allow_zeros(allows_zeros);
        let touched = FrameIndex(5);
        let fault = Fault { frame: touched, access: Access::Write, in_flight: false };
        policy.fault(&fault, &mut plan.begin(&Nothing, Some(touched)));
        assert_eq!(plan.answer() == Answer::Zero, allows_zeros);
        let numbers = |frames: &[FrameIndex]| frames.iter().map(|frame| frame.0).collect();
        (numbers(plan.zero()), numbers(plan.fetch()))
    }

    #[test]
    fn frames_allocated_next_are_filled() {
        assert_eq!(planned(Order::Allocation, true), (vec![4, 3, 2], vec![]));
        let around = vec![4, 6, 7];
        assert_eq!(planned(Order::FrameNumber, true), (around, vec![]), "the block around it");
    }

    #[test]
    fn frames_that_must_not_be_zeros_are_fetched_in_the_same_order() {
        assert_eq!(planned(Order::Allocation, false), (vec![], vec![4, 3, 2]));
        assert_eq!(planned(Order::FrameNumber, false), (vec![], vec![4, 6, 7]));
    }
}
