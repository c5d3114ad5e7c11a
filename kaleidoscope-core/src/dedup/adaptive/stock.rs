//! A guest's frames, sorted into arms: frames that are expected to share one fate, so that some of them speak for the rest.

use crate::addr::FrameIndex;
use crate::color::{FrameKind, Order, Region, RegionId};
use crate::dedup::catalog::{RegionKey, hash, position, positions};
use crate::dedup::yields::Class;
use crate::dedup::{Catalog, GuestNumber, Heat, Relation};
use crate::prefetch::Atlas;
use crate::recording::name::Name;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Base-2 logarithm of the positions of an arm. A file, or a piece of one: large enough that one frame in vain is nothing beside the rest,
/// small enough that what is padding in a kernel's text, or what two versions have in common, fills some.
const CHUNK_SHIFT: u32 = 6;

/// The same for pages of files with the same base name, of which each position has several.
const SIBLING_SHIFT: u32 = 4;

/// Arm of frames that nobody chooses.
const NO_ARM: u32 = u32::MAX;

/// Frames of one class that lie together: a piece of a region, or the same piece of several files of one base name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arm {
    pub(super) class: Class,
    /// Arms of one directory or one region teach each other.
    pub(super) group: u32,
    /// Breaks ties in the same way in every guest, so that guests find the same first.
    pub(super) tie: u32,
    /// First of its frames in [`Stock::frames`], and how many it has.
    pub(super) start: u32,
    pub(super) len: u32,
}

/// All arms of a guest.
#[derive(Clone, Debug, Default)]
pub(super) struct Stock {
    pub(super) arms: Vec<Arm>,
    /// Frames arm by arm, in natural order within one.
    pub(super) frames: Vec<FrameIndex>,
    /// Every frame's arm.
    arm_of: Vec<u32>,
    /// Arms of every group.
    pub(super) groups: Vec<Vec<u32>>,
}

impl Stock {
    /// Sorts the frames of a guest by what the catalog knows of the others.
    pub(super) fn new(atlas: &Atlas, catalog: &Catalog, guest: GuestNumber) -> Self {
        let mut sorter = Sorter::new(atlas);
        for (number, region) in (0..).zip(atlas.map().regions()) {
            sorter.region(catalog, guest, RegionId(number), region);
        }
        sorter.rest();
        sorter.finish()
    }

    /// A frame's arm; `None` for one that nobody chooses.
    pub(super) fn arm_of(&self, frame: FrameIndex) -> Option<usize> {
        let arm = self.arm_of.get(frame.as_usize()).filter(|arm| **arm != NO_ARM)?;
        Some(*arm as usize)
    }

    /// The frames of an arm.
    pub(super) fn of(&self, arm: &Arm) -> &[FrameIndex] {
        let start = arm.start as usize;
        self.frames.get(start..start.saturating_add(arm.len as usize)).unwrap_or(&[])
    }
}

/// Files of one base name.
#[derive(Clone, Copy, Default)]
struct Siblings {
    /// The two highest last positions among them.
    reach: [Option<u64>; 2],
}

struct Sorter<'a> {
    atlas: &'a Atlas,
    siblings: HashMap<u64, Siblings, RandomState>,
    sibling_arms: HashMap<(u64, u64), u32, RandomState>,
    groups: HashMap<(Class, u64), u32, RandomState>,
    stock: Stock,
    /// Arms of the piece that is being sorted.
    open: Vec<(Class, u32)>,
    own: Vec<u64>,
    relations: Vec<Relation>,
}

impl<'a> Sorter<'a> {
    fn new(atlas: &'a Atlas) -> Self {
        let mut siblings: HashMap<u64, Siblings, RandomState> = HashMap::default();
        for (number, region) in (0..).zip(atlas.map().regions()) {
            let Some((_, base)) = path_of(region) else { continue };
            let last = atlas.run(atlas.range(number)).last().map(|frame| position(atlas, *frame));
            let reach = &mut siblings.entry(hash(&[base])).or_default().reach;
            // Option's order puts None first.
            if last > reach[0] {
                *reach = [last, reach[0]];
            } else {
                reach[1] = reach[1].max(last);
            }
        }
        let arm_of = vec![NO_ARM; atlas.frames() as usize];
        Self {
            atlas,
            siblings,
            sibling_arms: HashMap::default(),
            groups: HashMap::default(),
            stock: Stock { arm_of, ..Stock::default() },
            open: Vec::new(),
            own: Vec::new(),
            relations: Vec::new(),
        }
    }

    fn region(&mut self, catalog: &Catalog, guest: GuestNumber, id: RegionId, region: &Region) {
        if matches!(region.kind, FrameKind::Free | FrameKind::Offline) {
            return;
        }
        let atlas = self.atlas;
        self.own.clear();
        self.own.extend(positions(atlas, id));
        let key = RegionKey::of(region, atlas.map().kernel());
        let is_file = region.order == Order::FileOffset;
        match &key {
            Some(key) => {
                catalog.relations((guest, id), key, is_file, &self.own, &mut self.relations);
            }
            None => {
                self.relations.clear();
                self.relations.resize(self.own.len(), Relation::None);
            }
        }
        let path = path_of(region);
        let base = path.map(|(_, base)| hash(&[base]));
        let name = key.map_or(u64::from(id.0), |key| key.name);
        let group = path.map_or(name, |(folder, _)| hash(&[folder]));
        let reach = base.and_then(|base| self.siblings.get(&base)?.reach[1]);
        let is_ranked = matches!(region.order, Order::FrameNumber | Order::Allocation);
        let mut chunk = u64::MAX;
        self.open.clear();
        let frames = atlas.run(atlas.range(id.0));
        for (rank, frame) in (0u64..).zip(frames) {
            let at = usize::try_from(rank).unwrap_or(usize::MAX);
            let position = self.own.get(at).copied().unwrap_or(0);
            let mut relation = self.relations.get(at).copied().unwrap_or(Relation::None);
            if relation < Relation::Sibling && reach.is_some_and(|reach| position <= reach) {
                relation = Relation::Sibling;
            }
            let class = class_of(atlas, *frame, relation);
            if let (Relation::Sibling, Some(base)) = (relation, base) {
                let piece = (base, position >> SIBLING_SHIFT);
                let next = to_u32(self.stock.arms.len());
                let arm = *self.sibling_arms.entry(piece).or_insert(next);
                if arm == next {
                    self.add_arm(class, base, piece.1);
                }
                self.put(*frame, arm);
                continue;
            }
            let here = (if is_ranked { rank } else { position }) >> CHUNK_SHIFT;
            if here != chunk {
                chunk = here;
                self.open.clear();
            }
            let open = self.open.iter().find(|(of, _)| *of == class).map(|(_, arm)| *arm);
            let arm = open.unwrap_or_else(|| {
                let arm = self.add_arm(class, group, name ^ here.rotate_left(32));
                self.open.push((class, arm));
                arm
            });
            self.put(*frame, arm);
        }
    }

    /// Frames without a region, by color.
    fn rest(&mut self) {
        let atlas = self.atlas;
        let stretch = to_u32(atlas.map().regions().len());
        let mut chunk = usize::MAX;
        for (rank, frame) in atlas.run(atlas.range(stretch)).iter().enumerate() {
            if atlas.is_free(*frame) {
                continue;
            }
            if rank >> CHUNK_SHIFT != chunk {
                chunk = rank >> CHUNK_SHIFT;
                self.open.clear();
            }
            let class = class_of(atlas, *frame, Relation::None);
            let open = self.open.iter().find(|(of, _)| *of == class).map(|(_, arm)| *arm);
            let arm = open.unwrap_or_else(|| {
                let arm = self.add_arm(class, u64::MAX, u64::from(frame.0));
                self.open.push((class, arm));
                arm
            });
            self.put(*frame, arm);
        }
    }

    fn add_arm(&mut self, class: Class, group: u64, tie: u64) -> u32 {
        let next = to_u32(self.stock.groups.len());
        let group = *self.groups.entry((class, group)).or_insert(next);
        if group == next {
            self.stock.groups.push(Vec::new());
        }
        let arm = to_u32(self.stock.arms.len());
        if let Some(arms) = self.stock.groups.get_mut(group as usize) {
            arms.push(arm);
        }
        // Names are hashes, whose low half is as good as any.
        let tie = u32::try_from(tie & u64::from(u32::MAX)).unwrap_or(0);
        self.stock.arms.push(Arm { class, group, tie, start: 0, len: 0 });
        arm
    }

    fn put(&mut self, frame: FrameIndex, arm: u32) {
        if let Some(of) = self.stock.arm_of.get_mut(frame.as_usize()) {
            *of = arm;
        }
        if let Some(arm) = self.stock.arms.get_mut(arm as usize) {
            arm.len = arm.len.saturating_add(1);
        }
    }

    /// Lays the frames out arm by arm.
    fn finish(mut self) -> Stock {
        let mut start = 0u32;
        for arm in &mut self.stock.arms {
            arm.start = start;
            start = start.saturating_add(arm.len);
        }
        let mut next: Vec<u32> = self.stock.arms.iter().map(|arm| arm.start).collect();
        self.stock.frames = vec![FrameIndex(0); start as usize];
        // In the order of the atlas, so that the frames of an arm are in natural order.
        for frame in self.atlas.run(0..self.atlas.frames()) {
            let Some(arm) = self.stock.arm_of(*frame) else { continue };
            let Some(next) = next.get_mut(arm) else { continue };
            if let Some(slot) = self.stock.frames.get_mut(*next as usize) {
                *slot = *frame;
            }
            *next = next.saturating_add(1);
        }
        for arm in self.sibling_arms.values() {
            let Some(arm) = self.stock.arms.get(*arm as usize) else { continue };
            let start = arm.start as usize;
            let end = start.saturating_add(arm.len as usize);
            if let Some(frames) = self.stock.frames.get_mut(start..end) {
                // The same page of all siblings, then the next one.
                frames.sort_by_key(|frame| position(self.atlas, *frame));
            }
        }
        self.stock
    }
}

fn class_of(atlas: &Atlas, frame: FrameIndex, relation: Relation) -> Class {
    let temperature = atlas.map().temperatures().get(frame.as_usize()).copied();
    Class::of(atlas.color(frame), relation, Heat::of(temperature.unwrap_or_default()))
}

/// Folder and base name of a region that is a file.
fn path_of(region: &Region) -> Option<(&str, &str)> {
    if region.order != Order::FileOffset || region.kind == FrameKind::BlockDevice {
        return None;
    }
    let name = Name::parse(region.order, &region.name);
    name.portable(region.kind)?.rsplit_once('/')
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
