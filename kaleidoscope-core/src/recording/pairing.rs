//! Finds the counterpart of each recorded region in another guest.

use super::alignment::Alignment;
use super::region::{PageRange, has_shape, members, stretches};
use super::{RecordedRegion, Recording, Salt, Similarity, to_u32};
use crate::color::{FrameKind, Order, RegionId};
use crate::prefetch::LocalityOrder;
use crate::region_name::RegionName;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;

/// Most regions of one name that are compared with each other; a hostile guest can have any number.
const MAX_SAME_NAME: usize = 1024;

/// The properties by which regions are paired.
#[derive(Clone, Debug)]
pub(super) struct RegionKey<'a> {
    kind: FrameKind,
    order: Order,
    name: Cow<'a, str>,
    frames: u32,
}

impl RegionKey<'_> {
    fn parsed(&self) -> RegionName<'_> {
        RegionName::parse(self.order, &self.name)
    }
}

/// A guest whose regions can be paired: an image, or another recording.
pub(super) trait Pairable {
    /// Its regions by number. Names are hashed with the salt, if there is one.
    fn region_keys(&self, salt: Option<Salt>) -> Vec<RegionKey<'_>>;

    /// The stretches of resident pages of a process's memory.
    fn stretches(&self, region: u32) -> Cow<'_, [PageRange]>;
}

impl Pairable for LocalityOrder {
    fn region_keys(&self, salt: Option<Salt>) -> Vec<RegionKey<'_>> {
        let hash = |kind, order, name: &'_ str| salt.map(|s| s.hash_name(kind, order, name));
        self.map()
            .regions()
            .iter()
            .map(|r| RegionKey {
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

impl Pairable for Recording {
    fn region_keys(&self, _salt: Option<Salt>) -> Vec<RegionKey<'_>> {
        self.regions().iter().map(RecordedRegion::region_key).collect()
    }

    fn stretches(&self, region: u32) -> Cow<'_, [PageRange]> {
        let region = self.regions().get(region as usize);
        region.map_or(Cow::Borrowed(&[]), |r| Cow::Borrowed(&r.stretches))
    }
}

impl RecordedRegion {
    fn region_key(&self) -> RegionKey<'_> {
        let name = Cow::Borrowed(&*self.name);
        RegionKey { kind: self.kind, order: self.order, name, frames: self.frames }
    }
}

/// The counterpart of a recorded region.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// Number of the region in the other guest.
    pub(super) to: u32,
    /// Maps its positions, if they are randomized.
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

/// Pairs the regions of `from` with those of `to`, each at most once. Returns one item per region
/// of `from`.
pub(super) fn pair(
    from: &Recording,
    to: &impl Pairable,
    likeness: Similarity,
) -> Vec<Option<Pair>> {
    let theirs = to.region_keys(from.salt());
    let ours: Vec<RegionKey<'_>> = from.regions().iter().map(RecordedRegion::region_key).collect();
    let numbers = match likeness {
        Similarity::Snapshot => by_name(&ours, &theirs),
        Similarity::Kernel | Similarity::Other => by_portable_name(&ours, &theirs),
    };
    let with_alignment = |(region, number): (&RecordedRegion, Option<u32>)| {
        let number = number?;
        let moves = likeness != Similarity::Snapshot && has_shape(region.kind, region.order);
        let align = || Alignment::new(&region.stretches, &to.stretches(number));
        Some(Pair { to: number, alignment: moves.then(align) })
    };
    from.regions().iter().zip(numbers).map(with_alignment).collect()
}

/// Pairs the regions of the same snapshot by name; regions of equal name are paired in order.
fn by_name(ours: &[RegionKey<'_>], theirs: &[RegionKey<'_>]) -> Vec<Option<u32>> {
    let mut named: HashMap<(FrameKind, Order, &str, u32), Vec<u32>> = HashMap::new();
    for (number, region_key) in theirs.iter().enumerate().rev() {
        let key = (region_key.kind, region_key.order, &*region_key.name, region_key.frames);
        named.entry(key).or_default().push(to_u32(number));
    }
    ours.iter().map(|v| named.get_mut(&(v.kind, v.order, &*v.name, v.frames))?.pop()).collect()
}

/// Pairs regions by the portable parts of their names.
fn by_portable_name(ours: &[RegionKey<'_>], theirs: &[RegionKey<'_>]) -> Vec<Option<u32>> {
    type Groups<'a> = HashMap<(FrameKind, Order, &'a str), (Vec<usize>, Vec<usize>)>;
    let ours_parsed: Vec<RegionName<'_>> = ours.iter().map(RegionKey::parsed).collect();
    let theirs_parsed: Vec<RegionName<'_>> = theirs.iter().map(RegionKey::parsed).collect();
    let mut groups = Groups::new();
    for (i, (region_key, name)) in ours.iter().zip(&ours_parsed).enumerate() {
        if let Some(portable) = name.portable(region_key.kind) {
            groups.entry((region_key.kind, region_key.order, portable)).or_default().0.push(i);
        }
    }
    for (j, (region_key, name)) in theirs.iter().zip(&theirs_parsed).enumerate() {
        let key = name
            .portable(region_key.kind)
            .map(|portable| (region_key.kind, region_key.order, portable));
        if let Some(group) = key.and_then(|key| groups.get_mut(&key)) {
            group.1.push(j);
        }
    }
    let mut out = vec![None; ours.len()];
    for ((_, order, _), (mut from, mut to)) in groups {
        if order == Order::UserAddress && from.len() == to.len() {
            // An equal number of processes of this name: assume the same start order.
            let pid = |names: &[RegionName<'_>], at: usize| names.get(at).and_then(RegionName::pid);
            from.sort_by_key(|&i| pid(&ours_parsed, i));
            to.sort_by_key(|&j| pid(&theirs_parsed, j));
            for (i, j) in from.into_iter().zip(to) {
                if let Some(slot) = out.get_mut(i) {
                    *slot = Some(to_u32(j));
                }
            }
            continue;
        }
        // Regions with the best fit choose first, among those the largest.
        from.truncate(MAX_SAME_NAME);
        to.truncate(MAX_SAME_NAME);
        let frames =
            |region_keys: &[RegionKey<'_>], at: usize| region_keys.get(at).map_or(0, |v| v.frames);
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
