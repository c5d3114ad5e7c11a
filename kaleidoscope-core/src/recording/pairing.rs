//! For each recorded region, the region of another guest that means the same.

use super::alignment::Alignment;
use super::name::{Name, Salt};
use super::region::{PageRange, has_shape, members, stretches};
use super::{RecordedRegion, Recording, Similarity, to_u32};
use crate::color::{FrameKind, Order, RegionId};
use crate::prefetch::LocalityOrder;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;

/// Most regions of one name that are compared with each other; a hostile guest can have any number.
const MAX_ALIKE: usize = 1024;

/// What a region goes by.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    kind: FrameKind,
    order: Order,
    name: Cow<'a, str>,
    frames: u32,
}

impl View<'_> {
    fn parsed(&self) -> Name<'_> {
        Name::parse(self.order, &self.name)
    }
}

/// A guest whose regions can be paired: an image, or another recording.
pub(super) trait Side {
    /// Its regions by number. Names are hashed with the salt, if there is one.
    fn views(&self, salt: Option<Salt>) -> Vec<View<'_>>;

    /// Where the pages of a process's memory are.
    fn stretches(&self, region: u32) -> Cow<'_, [PageRange]>;
}

impl Side for LocalityOrder {
    fn views(&self, salt: Option<Salt>) -> Vec<View<'_>> {
        let hash = |kind, order, name: &'_ str| salt.map(|s| s.hash_name(kind, order, name));
        self.map()
            .regions()
            .iter()
            .map(|r| View {
                kind: r.kind,
                order: r.order,
                name: hash(r.kind, r.order, &r.name).map_or(Cow::Borrowed(&*r.name), Cow::Owned),
                frames: r.frames,
            })
            .collect()
    }

    fn stretches(&self, region: u32) -> Cow<'_, [PageRange]> {
        Cow::Owned(stretches(members(self, RegionId(region)).positions()))
    }
}

impl Side for Recording {
    fn views(&self, _salt: Option<Salt>) -> Vec<View<'_>> {
        self.regions().iter().map(RecordedRegion::view).collect()
    }

    fn stretches(&self, region: u32) -> Cow<'_, [PageRange]> {
        let region = self.regions().get(region as usize);
        region.map_or(Cow::Borrowed(&[]), |r| Cow::Borrowed(&r.stretches))
    }
}

impl RecordedRegion {
    fn view(&self) -> View<'_> {
        let name = Cow::Borrowed(&*self.name);
        View { kind: self.kind, order: self.order, name, frames: self.frames }
    }
}

/// The region of the other guest that means the same as a recorded one.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// Its number.
    pub(super) to: u32,
    /// Where its positions went, if they are randomized.
    alignment: Option<Alignment>,
}

impl Pair {
    /// The position in the other guest.
    pub(super) fn position(&self, position: u64) -> Option<u64> {
        match &self.alignment {
            Some(alignment) => alignment.position(position),
            None => Some(position),
        }
    }
}

/// Pairs the regions of `from`, none with more than one and none of `to` twice. One pair or none
/// for each region of `from`.
pub(super) fn pair(from: &Recording, to: &impl Side, likeness: Similarity) -> Vec<Option<Pair>> {
    let theirs = to.views(from.salt());
    let ours: Vec<View<'_>> = from.regions().iter().map(RecordedRegion::view).collect();
    let numbers = match likeness {
        Similarity::Snapshot => by_name(&ours, &theirs),
        Similarity::Kernel | Similarity::Other => by_meaning(&ours, &theirs),
    };
    let with_alignment = |(region, number): (&RecordedRegion, Option<u32>)| {
        let number = number?;
        let moves = likeness != Similarity::Snapshot && has_shape(region.kind, region.order);
        let align = || Alignment::new(&region.stretches, &to.stretches(number));
        Some(Pair { to: number, alignment: moves.then(align) })
    };
    from.regions().iter().zip(numbers).map(with_alignment).collect()
}

/// Pairs the regions of one snapshot: same names, the first with the first where several have one.
fn by_name(ours: &[View<'_>], theirs: &[View<'_>]) -> Vec<Option<u32>> {
    let mut named: HashMap<(FrameKind, Order, &str, u32), Vec<u32>> = HashMap::new();
    for (number, view) in theirs.iter().enumerate().rev() {
        let key = (view.kind, view.order, &*view.name, view.frames);
        named.entry(key).or_default().push(to_u32(number));
    }
    ours.iter().map(|v| named.get_mut(&(v.kind, v.order, &*v.name, v.frames))?.pop()).collect()
}

/// Pairs regions whose names mean the same.
fn by_meaning(ours: &[View<'_>], theirs: &[View<'_>]) -> Vec<Option<u32>> {
    type Groups<'a> = HashMap<(FrameKind, Order, &'a str), (Vec<usize>, Vec<usize>)>;
    let ours_parsed: Vec<Name<'_>> = ours.iter().map(View::parsed).collect();
    let theirs_parsed: Vec<Name<'_>> = theirs.iter().map(View::parsed).collect();
    let mut groups = Groups::new();
    for (i, (view, name)) in ours.iter().zip(&ours_parsed).enumerate() {
        if let Some(portable) = name.portable(view.kind) {
            groups.entry((view.kind, view.order, portable)).or_default().0.push(i);
        }
    }
    for (j, (view, name)) in theirs.iter().zip(&theirs_parsed).enumerate() {
        let key = name.portable(view.kind).map(|portable| (view.kind, view.order, portable));
        if let Some(group) = key.and_then(|key| groups.get_mut(&key)) {
            group.1.push(j);
        }
    }
    let mut out = vec![None; ours.len()];
    for ((_, order, _), (mut from, mut to)) in groups {
        if order == Order::UserAddress && from.len() == to.len() {
            // As many processes of this name: they were started in the same order.
            let pid = |names: &[Name<'_>], at: usize| names.get(at).and_then(Name::pid);
            from.sort_by_key(|&i| pid(&ours_parsed, i));
            to.sort_by_key(|&j| pid(&theirs_parsed, j));
            for (i, j) in from.into_iter().zip(to) {
                if let Some(slot) = out.get_mut(i) {
                    *slot = Some(to_u32(j));
                }
            }
            continue;
        }
        // Who fits best chooses first, among those the largest.
        from.truncate(MAX_ALIKE);
        to.truncate(MAX_ALIKE);
        let frames = |views: &[View<'_>], at: usize| views.get(at).map_or(0, |v| v.frames);
        let likeness = |i: usize, j: usize| match (ours_parsed.get(i), theirs_parsed.get(j)) {
            (Some(a), Some(b)) => a.likeness(b),
            _ => 0,
        };
        let best = |i: usize| to.iter().map(|&j| likeness(i, j)).max();
        from.sort_by_cached_key(|&i| Reverse((best(i), frames(ours, i))));
        for i in from {
            let wanted = frames(ours, i);
            let fit = |j: &usize| {
                (likeness(i, *j), Reverse(frames(theirs, *j).abs_diff(wanted)), Reverse(*j))
            };
            let Some(at) = (0..to.len()).max_by_key(|&at| to.get(at).map(fit)) else { break };
            if let Some(slot) = out.get_mut(i) {
                *slot = Some(to_u32(to.swap_remove(at)));
            }
        }
    }
    out
}
