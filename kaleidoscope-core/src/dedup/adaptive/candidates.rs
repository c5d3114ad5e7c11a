//! Sorts a guest's frames into candidate groups: frames that are expected to have the same outcome,
//! so that a sample predicts the rest.

use crate::addr::FrameIndex;
use crate::color::{FrameKind, Order, Region, RegionId};
use crate::dedup::catalog::{RegionKey, hash, position, positions};
use crate::dedup::hit_rates::Class;
use crate::dedup::{AccessClass, Catalog, GuestNumber, NameMatch};
use crate::prefetch::LocalityOrder;
use crate::region_name::RegionName;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Base-2 logarithm of the positions (pages) in a group, which covers a file or a part of one. One
/// wasted hash is negligible in a group this long, and a group is short enough that padding in a
/// kernel's text, or the common part of two versions of a file, fills whole groups.
const CHUNK_SHIFT: u32 = 6;

/// The same for sibling files, which contribute several frames per position.
const SIBLING_SHIFT: u32 = 4;

/// Group number of frames in no group, which are never selected.
const NO_GROUP: u32 = u32::MAX;

/// Frames of one class that are close together: a chunk of a region, or the same chunk of several
/// files with one base name.
#[derive(Clone, Copy, Debug)]
pub(super) struct CandidateGroup {
    pub(super) class: Class,
    /// Number of the cluster (directory or region); groups of one cluster share what they learn.
    pub(super) cluster: u32,
    /// Breaks ties in the same way in every guest, so that guests hash equal pages in the same
    /// order.
    pub(super) tie: u32,
    /// Index of its first frame in [`CandidateGroups::frames`], and its number of frames.
    pub(super) start: u32,
    pub(super) len: u32,
}

/// All candidate groups of a guest.
#[derive(Clone, Debug, Default)]
pub(super) struct CandidateGroups {
    pub(super) groups: Vec<CandidateGroup>,
    /// Frames by group, in locality order within a group.
    pub(super) frames: Vec<FrameIndex>,
    /// The group of every frame, or [`NO_GROUP`].
    group_of: Vec<u32>,
    /// The groups of every cluster.
    pub(super) clusters: Vec<Vec<u32>>,
}

impl CandidateGroups {
    /// Groups the frames of a guest. The catalog supplies the name matches with the other guests.
    pub(super) fn new(locality: &LocalityOrder, catalog: &Catalog, guest: GuestNumber) -> Self {
        let mut sorter = Sorter::new(locality);
        for (number, region) in (0..).zip(locality.map().regions()) {
            sorter.region(catalog, guest, RegionId(number), region);
        }
        sorter.rest();
        sorter.finish()
    }

    /// A frame's group; `None` if the frame is in no group.
    pub(super) fn group_of(&self, frame: FrameIndex) -> Option<usize> {
        let group = self.group_of.get(frame.as_usize()).filter(|group| **group != NO_GROUP)?;
        Some(*group as usize)
    }

    /// The frames of a group.
    pub(super) fn of(&self, group: &CandidateGroup) -> &[FrameIndex] {
        let start = group.start as usize;
        self.frames.get(start..start.saturating_add(group.len as usize)).unwrap_or(&[])
    }
}

/// All files with one base name.
#[derive(Clone, Copy, Default)]
struct Siblings {
    /// The two highest last positions (in pages) among them.
    reach: [Option<u64>; 2],
}

struct Sorter<'a> {
    locality: &'a LocalityOrder,
    siblings: HashMap<u64, Siblings, RandomState>,
    sibling_groups: HashMap<(u64, u64), u32, RandomState>,
    clusters: HashMap<(Class, u64), u32, RandomState>,
    candidates: CandidateGroups,
    /// Groups of the current chunk, one per class.
    open: Vec<(Class, u32)>,
    own: Vec<u64>,
    name_matches: Vec<NameMatch>,
}

impl<'a> Sorter<'a> {
    fn new(locality: &'a LocalityOrder) -> Self {
        let mut siblings: HashMap<u64, Siblings, RandomState> = HashMap::default();
        for (number, region) in (0..).zip(locality.map().regions()) {
            let Some((_, base)) = path_of(region) else { continue };
            let last =
                locality.run(locality.range(number)).last().map(|frame| position(locality, *frame));
            let reach = &mut siblings.entry(hash(&[base])).or_default().reach;
            // Option's order puts None first.
            if last > reach[0] {
                *reach = [last, reach[0]];
            } else {
                reach[1] = reach[1].max(last);
            }
        }
        let group_of = vec![NO_GROUP; locality.frames() as usize];
        Self {
            locality,
            siblings,
            sibling_groups: HashMap::default(),
            clusters: HashMap::default(),
            candidates: CandidateGroups { group_of, ..CandidateGroups::default() },
            open: Vec::new(),
            own: Vec::new(),
            name_matches: Vec::new(),
        }
    }

    fn region(&mut self, catalog: &Catalog, guest: GuestNumber, id: RegionId, region: &Region) {
        if matches!(region.kind, FrameKind::Free | FrameKind::Offline) {
            return;
        }
        let locality = self.locality;
        self.own.clear();
        self.own.extend(positions(locality, id));
        let key = RegionKey::of(region, locality.map().kernel());
        let is_file = region.order == Order::FileOffset;
        match &key {
            Some(key) => {
                catalog.name_matches((guest, id), key, is_file, &self.own, &mut self.name_matches);
            }
            None => {
                self.name_matches.clear();
                self.name_matches.resize(self.own.len(), NameMatch::None);
            }
        }
        let path = path_of(region);
        let base = path.map(|(_, base)| hash(&[base]));
        let name = key.map_or(u64::from(id.0), |key| key.name);
        let cluster = path.map_or(name, |(directory, _)| hash(&[directory]));
        let reach = base.and_then(|base| self.siblings.get(&base)?.reach[1]);
        let is_ranked = matches!(region.order, Order::FrameNumber | Order::Allocation);
        let mut chunk = u64::MAX;
        self.open.clear();
        let frames = locality.run(locality.range(id.0));
        for (rank, frame) in (0u64..).zip(frames) {
            let at = usize::try_from(rank).unwrap_or(usize::MAX);
            let position = self.own.get(at).copied().unwrap_or(0);
            let mut name_match = self.name_matches.get(at).copied().unwrap_or(NameMatch::None);
            if name_match < NameMatch::Sibling && reach.is_some_and(|reach| position <= reach) {
                name_match = NameMatch::Sibling;
            }
            let class = class_of(locality, *frame, name_match);
            if let (NameMatch::Sibling, Some(base)) = (name_match, base) {
                let piece = (base, position >> SIBLING_SHIFT);
                let next = to_u32(self.candidates.groups.len());
                let group = *self.sibling_groups.entry(piece).or_insert(next);
                if group == next {
                    self.add_group(class, base, piece.1);
                }
                self.put(*frame, group);
                continue;
            }
            let here = (if is_ranked { rank } else { position }) >> CHUNK_SHIFT;
            if here != chunk {
                chunk = here;
                self.open.clear();
            }
            let open = self.open.iter().find(|(of, _)| *of == class).map(|(_, group)| *group);
            let group = open.unwrap_or_else(|| {
                let group = self.add_group(class, cluster, name ^ here.rotate_left(32));
                self.open.push((class, group));
                group
            });
            self.put(*frame, group);
        }
    }

    /// Groups the frames without a region.
    fn rest(&mut self) {
        let locality = self.locality;
        let unassigned = to_u32(locality.map().regions().len());
        let mut chunk = usize::MAX;
        for (rank, frame) in locality.run(locality.range(unassigned)).iter().enumerate() {
            if locality.is_free(*frame) {
                continue;
            }
            if rank >> CHUNK_SHIFT != chunk {
                chunk = rank >> CHUNK_SHIFT;
                self.open.clear();
            }
            let class = class_of(locality, *frame, NameMatch::None);
            let open = self.open.iter().find(|(of, _)| *of == class).map(|(_, group)| *group);
            let group = open.unwrap_or_else(|| {
                let group = self.add_group(class, u64::MAX, u64::from(frame.0));
                self.open.push((class, group));
                group
            });
            self.put(*frame, group);
        }
    }

    fn add_group(&mut self, class: Class, cluster: u64, tie: u64) -> u32 {
        let next = to_u32(self.candidates.clusters.len());
        let cluster = *self.clusters.entry((class, cluster)).or_insert(next);
        if cluster == next {
            self.candidates.clusters.push(Vec::new());
        }
        let group = to_u32(self.candidates.groups.len());
        if let Some(groups) = self.candidates.clusters.get_mut(cluster as usize) {
            groups.push(group);
        }
        // Names are 64-bit hashes, so the low half suffices.
        let tie = u32::try_from(tie & u64::from(u32::MAX)).unwrap_or(0);
        self.candidates.groups.push(CandidateGroup { class, cluster, tie, start: 0, len: 0 });
        group
    }

    fn put(&mut self, frame: FrameIndex, group: u32) {
        if let Some(of) = self.candidates.group_of.get_mut(frame.as_usize()) {
            *of = group;
        }
        if let Some(group) = self.candidates.groups.get_mut(group as usize) {
            group.len = group.len.saturating_add(1);
        }
    }

    /// Lays out the frames by group.
    fn finish(mut self) -> CandidateGroups {
        let mut start = 0u32;
        for group in &mut self.candidates.groups {
            group.start = start;
            start = start.saturating_add(group.len);
        }
        let mut next: Vec<u32> = self.candidates.groups.iter().map(|group| group.start).collect();
        self.candidates.frames = vec![FrameIndex(0); start as usize];
        // Iterates in locality order, so that the frames of a group keep that order.
        for frame in self.locality.run(0..self.locality.frames()) {
            let Some(group) = self.candidates.group_of(*frame) else { continue };
            let Some(next) = next.get_mut(group) else { continue };
            if let Some(slot) = self.candidates.frames.get_mut(*next as usize) {
                *slot = *frame;
            }
            *next = next.saturating_add(1);
        }
        for group in self.sibling_groups.values() {
            let Some(group) = self.candidates.groups.get(*group as usize) else { continue };
            let start = group.start as usize;
            let end = start.saturating_add(group.len as usize);
            if let Some(frames) = self.candidates.frames.get_mut(start..end) {
                // Orders by position: the same page of all siblings, then the next page.
                frames.sort_by_key(|frame| position(self.locality, *frame));
            }
        }
        self.candidates
    }
}

fn class_of(locality: &LocalityOrder, frame: FrameIndex, name_match: NameMatch) -> Class {
    let temperature = locality.map().temperatures().get(frame.as_usize()).copied();
    Class::of(locality.color(frame), name_match, AccessClass::of(temperature.unwrap_or_default()))
}

/// Directory and base name of a region that is a file.
fn path_of(region: &Region) -> Option<(&str, &str)> {
    if region.order != Order::FileOffset || region.kind == FrameKind::BlockDevice {
        return None;
    }
    let name = RegionName::parse(region.order, &region.name);
    name.portable(region.kind)?.rsplit_once('/')
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
