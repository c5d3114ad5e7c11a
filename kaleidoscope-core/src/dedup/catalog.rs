//! The names of the regions in a host's guests, from their color maps, and the build ids of their
//! files where these were read.

use super::{BuildIds, NameMatch};
use crate::addr::FrameIndex;
use crate::color::{FrameKind, KernelIdentity, Order, Region, RegionId};
use crate::prefetch::LocalityOrder;
use crate::region_name::RegionName;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use twox_hash::XxHash3_64;

/// Number of a guest in a [`Catalog`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GuestNumber(pub u32);

/// The regions of a host's guests, by names that are comparable between guests.
///
/// Names and build ids are kept as 64-bit hashes. A guest may choose names so that hashes collide;
/// the effect is wasted hashes, because only equal full fingerprints make pages equal. Takes 8
/// bytes per frame whose position is comparable between guests, and about 100 per region.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    guests: u32,
    entries: HashMap<u64, Vec<CatalogEntry>, RandomState>,
}

/// A region of a guest.
#[derive(Clone, Debug)]
struct CatalogEntry {
    guest: GuestNumber,
    region: RegionId,
    /// Distinguishes regions with the same name.
    version: u64,
    /// Distinguishes them more reliably, if known.
    build_id: Option<u64>,
    /// Positions of its frames, ascending, if they are comparable between guests; else empty.
    positions: Vec<u64>,
}

/// Hashes of a region's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RegionKey {
    /// Kind and path, command or kernel name, which are comparable between guests.
    pub(super) name: u64,
    /// File system and inode number of a file, build of a kernel.
    version: u64,
    /// Whether positions are comparable between guests.
    has_portable_positions: bool,
}

impl RegionKey {
    /// The key of a region; `None` for free memory and for a region without a portable name.
    pub(super) fn of(region: &Region, kernel: &KernelIdentity) -> Option<Self> {
        if matches!(region.kind, FrameKind::Free | FrameKind::Offline) {
            return None;
        }
        let name = RegionName::parse(region.order, &region.name);
        let portable = name.portable(region.kind)?;
        let version = match name {
            RegionName::File { file_system, inode, .. } => hash(&[file_system, inode, portable]),
            RegionName::Process { .. } => 0,
            // The banner identifies the build if the build id was not found.
            RegionName::Kernel(_) => hash(&[&kernel.build_id, &kernel.banner]),
        };
        let kind = [region.kind as u8, region.order as u8];
        Some(Self {
            name: XxHash3_64::oneshot_with_seed(hash(&[portable]), &kind),
            version,
            has_portable_positions: matches!(
                region.order,
                Order::FileOffset | Order::KernelAddress
            ),
        })
    }
}

/// Hashes strings; their boundaries affect the hash.
pub(super) fn hash(texts: &[&str]) -> u64 {
    texts.iter().fold(0, |seed, text| XxHash3_64::oneshot_with_seed(seed, text.as_bytes()))
}

impl Catalog {
    /// A catalog without guests.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of guests.
    #[must_use]
    pub fn guests(&self) -> u32 {
        self.guests
    }

    /// Adds a guest without build ids.
    pub fn add(&mut self, locality: &LocalityOrder) -> GuestNumber {
        self.add_with(locality, &BuildIds::default())
    }

    /// Adds a guest and the build ids of its files. Ids of another guest are not an error: they
    /// lower the hit rate, as false names do.
    pub fn add_with(&mut self, locality: &LocalityOrder, build_ids: &BuildIds) -> GuestNumber {
        let guest = GuestNumber(self.guests);
        self.guests = self.guests.saturating_add(1);
        for (id, region) in (0..).map(RegionId).zip(locality.map().regions()) {
            let Some(key) = RegionKey::of(region, locality.map().kernel()) else { continue };
            let positions = match key.has_portable_positions {
                true => positions(locality, id).collect(),
                false => Vec::new(),
            };
            self.entries.entry(key.name).or_default().push(CatalogEntry {
                guest,
                region: id,
                version: key.version,
                build_id: build_ids.get(id).map(XxHash3_64::oneshot),
                positions,
            });
        }
        guest
    }

    /// Fills `name_matches` with the best name match of each frame of a region, in locality order,
    /// with the other guests. `own` are the frames' positions.
    pub(super) fn name_matches(
        &self,
        (guest, region): (GuestNumber, RegionId),
        key: &RegionKey,
        is_file: bool,
        own: &[u64],
        name_matches: &mut Vec<NameMatch>,
    ) {
        let all = self.entries.get(&key.name).map_or(&[][..], Vec::as_slice);
        let others = || all.iter().filter(|known| known.guest != guest);
        let any = others().next().map_or(NameMatch::None, |_| NameMatch::Namesake);
        name_matches.clear();
        name_matches.resize(own.len(), any);
        if !key.has_portable_positions {
            return;
        }
        let itself = all.iter().find(|known| known.guest == guest && known.region == region);
        let build_id = itself.and_then(|known| known.build_id);
        for other in others() {
            let is_same_build = other.build_id.zip(build_id).map(|(their, own)| their == own);
            let is_same = is_same_build.unwrap_or(other.version == key.version);
            let name_match = match (is_file, is_same) {
                (true, true) => NameMatch::SameFile,
                (true, false) if is_same_build.is_some() => NameMatch::OtherFile,
                (true, false) if other.positions.last() == own.last() => NameMatch::LikeFile,
                (true, false) => NameMatch::OtherFile,
                (false, true) => NameMatch::SameBuild,
                (false, false) => NameMatch::OtherBuild,
            };
            let mut theirs = other.positions.iter().copied().peekable();
            for (position, known) in own.iter().zip(name_matches.iter_mut()) {
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
