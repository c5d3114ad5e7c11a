//! The names of what a host's guests hold: region by region, from their color maps, and the build
//! ids of their files where these were read.

use super::{BuildIds, NameMatch};
use crate::addr::FrameIndex;
use crate::color::{FrameKind, KernelIdentity, Order, Region, RegionId};
use crate::prefetch::LocalityOrder;
use crate::recording::name::Name;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use twox_hash::XxHash3_64;

/// Number of a guest in a [`Catalog`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GuestNumber(pub u32);

/// What regions the guests of a host have, under names that mean the same in all of them.
///
/// Names and build ids are kept as 64-bit hashes. A guest may choose them so that hashes collide;
/// what it gains is that frames are hashed in vain. Whether pages are equal is never decided by
/// names. Takes 8 bytes for each frame whose place in its region means something in another guest,
/// and some 100 for each region.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    guests: u32,
    known: HashMap<u64, Vec<Known>, RandomState>,
}

/// A region of a guest.
#[derive(Clone, Debug)]
struct Known {
    guest: GuestNumber,
    region: RegionId,
    /// What tells two regions of the same name apart.
    exact: u64,
    /// What does so better, where it is known.
    build_id: Option<u64>,
    /// Positions of its frames, ascending, where they mean something in another guest.
    positions: Vec<u64>,
}

/// A region's name in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RegionKey {
    /// What means the same in every guest: kind and path, command or kernel name.
    pub(super) name: u64,
    /// Inode number of a file, build of a kernel.
    exact: u64,
    /// Whether positions mean the same in every guest.
    is_placed: bool,
}

impl RegionKey {
    /// The key of a region; `None` for one without a name that others understand, and for free
    /// memory.
    pub(super) fn of(region: &Region, kernel: &KernelIdentity) -> Option<Self> {
        if matches!(region.kind, FrameKind::Free | FrameKind::Offline) {
            return None;
        }
        let name = Name::parse(region.order, &region.name);
        let portable = name.portable(region.kind)?;
        let exact = match name {
            Name::File { file_system, inode, .. } => hash(&[file_system, inode, portable]),
            Name::Process { .. } => 0,
            // The banner names the build where the build id was not found.
            Name::Kernel(_) => hash(&[&kernel.build_id, &kernel.banner]),
        };
        let kind = [region.kind as u8, region.order as u8];
        Some(Self {
            name: XxHash3_64::oneshot_with_seed(hash(&[portable]), &kind),
            exact,
            is_placed: matches!(region.order, Order::FileOffset | Order::KernelAddress),
        })
    }
}

/// A hash of texts, in which it matters where one ends.
pub(super) fn hash(texts: &[&str]) -> u64 {
    texts.iter().fold(0, |seed, text| XxHash3_64::oneshot_with_seed(seed, text.as_bytes()))
}

impl Catalog {
    /// A catalog of no guest.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of guests.
    #[must_use]
    pub fn guests(&self) -> u32 {
        self.guests
    }

    /// Takes in a guest of whose files no build ids are known.
    pub fn add(&mut self, locality: &LocalityOrder) -> GuestNumber {
        self.add_with(locality, &BuildIds::default())
    }

    /// Takes in a guest and the build ids of its files. Ids of another guest are no error: they
    /// mislead, as names do that lie.
    pub fn add_with(&mut self, locality: &LocalityOrder, build_ids: &BuildIds) -> GuestNumber {
        let guest = GuestNumber(self.guests);
        self.guests = self.guests.saturating_add(1);
        for (id, region) in (0..).map(RegionId).zip(locality.map().regions()) {
            let Some(key) = RegionKey::of(region, locality.map().kernel()) else { continue };
            let positions = match key.is_placed {
                true => positions(locality, id).collect(),
                false => Vec::new(),
            };
            self.known.entry(key.name).or_default().push(Known {
                guest,
                region: id,
                exact: key.exact,
                build_id: build_ids.get(id).map(XxHash3_64::oneshot),
                positions,
            });
        }
        guest
    }

    /// How each frame of a guest's region, in its natural order, relates to what other guests have.
    pub(super) fn relations(
        &self,
        (guest, region): (GuestNumber, RegionId),
        key: &RegionKey,
        is_file: bool,
        own: &[u64],
        relations: &mut Vec<NameMatch>,
    ) {
        let all = self.known.get(&key.name).map_or(&[][..], Vec::as_slice);
        let others = || all.iter().filter(|known| known.guest != guest);
        let any = others().next().map_or(NameMatch::None, |_| NameMatch::Namesake);
        relations.clear();
        relations.resize(own.len(), any);
        if !key.is_placed {
            return;
        }
        let itself = all.iter().find(|known| known.guest == guest && known.region == region);
        let build_id = itself.and_then(|known| known.build_id);
        for other in others() {
            let is_same_build = other.build_id.zip(build_id).map(|(their, own)| their == own);
            let is_same = is_same_build.unwrap_or(other.exact == key.exact);
            let name_match = match (is_file, is_same) {
                (true, true) => NameMatch::SameFile,
                (true, false) if is_same_build.is_some() => NameMatch::OtherFile,
                (true, false) if other.positions.last() == own.last() => NameMatch::LikeFile,
                (true, false) => NameMatch::OtherFile,
                (false, true) => NameMatch::SameBuild,
                (false, false) => NameMatch::OtherBuild,
            };
            let mut theirs = other.positions.iter().copied().peekable();
            for (position, known) in own.iter().zip(relations.iter_mut()) {
                while theirs.next_if(|their| their < position).is_some() {}
                if theirs.peek() == Some(position) {
                    *known = name_match.max(*known);
                }
            }
        }
    }
}

/// Positions of a region's frames, ascending.
pub(super) fn positions(
    locality: &LocalityOrder,
    region: RegionId,
) -> impl Iterator<Item = u64> + '_ {
    locality.run(locality.range(region.0)).iter().map(|frame| position(locality, *frame))
}

/// A frame's position in its region.
pub(super) fn position(locality: &LocalityOrder, frame: FrameIndex) -> u64 {
    locality.map().positions().get(frame.as_usize()).copied().unwrap_or(0)
}
