//! A recording in terms of another image.

use super::confidence::factor;
use super::pairing::{Pair, pair};
use super::region::members;
use super::{Entry, Key, Likeness, Match, Recording};
use crate::addr::FrameIndex;
use crate::color::{Color, Order, RegionId};
use crate::manifest::ImageIdentity;
use crate::prefetch::Atlas;

/// A frame of the image that a recorded entry became.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Translated {
    /// The frame.
    pub frame: FrameIndex,
    /// How likely it is to be touched, 0 to 1: the share of runs that touched it, times what the way it was found is worth.
    pub confidence: f32,
    /// How it was found.
    pub how: Match,
    /// The entry's position in [`Recording::entries`].
    pub entry: u32,
}

/// The frames of an image that a recording speaks of.
#[derive(Clone, PartialEq, Debug)]
pub struct Translation {
    /// How like the image is to the one that was recorded.
    pub likeness: Likeness,
    /// The frames in recorded order, each once; none of them free.
    pub frames: Vec<Translated>,
    /// Per color of the recorded entries: how many were found. Indexed by the color's number.
    pub found: [u32; Color::ALL.len()],
    /// Per color of the recorded entries: how many were not.
    pub missing: [u32; Color::ALL.len()],
}

impl Translation {
    /// The frames that are at least as sure as `confidence`, in recorded order.
    pub fn at_least(&self, confidence: f32) -> impl Iterator<Item = &Translated> + '_ {
        self.frames.iter().filter(move |t| t.confidence >= confidence)
    }
}

impl Recording {
    /// How like an image is to the one that was recorded. Without the image's identity nobody can tell whether it is the very
    /// same snapshot, and it is taken for another one.
    #[must_use]
    pub fn likeness(&self, atlas: &Atlas, image: Option<&ImageIdentity>) -> Likeness {
        let (ours, theirs) = (self.kernel(), atlas.map().kernel());
        if image == Some(&self.image()) {
            Likeness::Snapshot
        } else if ours == theirs && !(ours.build_id.is_empty() && ours.banner.is_empty()) {
            Likeness::Kernel
        } else {
            Likeness::Other
        }
    }

    /// The recorded frames in another image, found through their keys. `image` is the image's identity, if it is known;
    /// see [`Recording::likeness`].
    #[must_use]
    pub fn translate(&self, atlas: &Atlas, image: Option<&ImageIdentity>) -> Translation {
        let likeness = self.likeness(atlas, image);
        let pairs = pair(self, atlas, likeness);
        self.collect(atlas, likeness, |entry| find(entry, self, atlas, &pairs, likeness))
    }

    /// The recorded frames by number alone: right for the very same snapshot, a guess for any other. Frames that are free in
    /// the image are left out.
    #[must_use]
    pub fn by_frame_number(&self, atlas: &Atlas, image: Option<&ImageIdentity>) -> Translation {
        let likeness = self.likeness(atlas, image);
        self.collect(atlas, likeness, |entry| by_number(entry, atlas))
    }

    fn collect(
        &self,
        atlas: &Atlas,
        likeness: Likeness,
        find: impl Fn(&Entry) -> Option<(FrameIndex, Match)>,
    ) -> Translation {
        let mut taken = vec![false; atlas.frames() as usize];
        let mut out = Translation {
            likeness,
            frames: Vec::with_capacity(self.entries().len().min(taken.len())),
            found: [0; Color::ALL.len()],
            missing: [0; Color::ALL.len()],
        };
        for (number, entry) in (0u32..).zip(self.entries()) {
            let found = find(entry).filter(|(frame, _)| !atlas.is_free(*frame));
            let found = found.filter(|(frame, _)| {
                let taken = taken.get_mut(frame.as_usize());
                taken.is_some_and(|taken| !std::mem::replace(taken, true))
            });
            let count = if found.is_some() { &mut out.found } else { &mut out.missing };
            if let Some(count) = count.get_mut(entry.color as usize) {
                *count += 1;
            }
            let Some((frame, how)) = found else { continue };
            #[expect(clippy::cast_possible_truncation, reason = "a share")]
            let share = self.share(entry) as f32;
            let confidence = share * factor(how, entry.color, likeness);
            out.frames.push(Translated { frame, confidence, how, entry: number });
        }
        out
    }
}

/// An entry by its frame's number.
fn by_number(entry: &Entry, atlas: &Atlas) -> Option<(FrameIndex, Match)> {
    Some((atlas.layout().index_of(entry.gfn?)?, Match::FrameNumber))
}

/// An entry by its key.
fn find(
    entry: &Entry,
    recording: &Recording,
    atlas: &Atlas,
    pairs: &[Option<Pair>],
    likeness: Likeness,
) -> Option<(FrameIndex, Match)> {
    let pair = entry.key.region().and_then(|region| pairs.get(region as usize)?.as_ref());
    match entry.key {
        Key::Frame => by_number(entry, atlas).filter(|_| likeness == Likeness::Snapshot),
        Key::Position { region, position, nth } => {
            let pair = pair?;
            let there = pair.position(position)?;
            let frame = members(atlas, RegionId(pair.to)).at(there, nth)?;
            let how = match recording.regions().get(region as usize)?.order {
                Order::FileOffset => Match::FileOffset,
                Order::UserAddress if there == position => Match::SameAddress,
                Order::UserAddress => Match::MovedAddress,
                Order::KernelAddress => Match::KernelAddress,
                Order::FrameNumber | Order::Allocation => Match::Rank,
            };
            Some((frame, how))
        }
        Key::Rank { rank, .. } => {
            // What firmware and boot loader set aside lies at the same place on every boot.
            if entry.color == Color::Reserved && likeness != Likeness::Snapshot {
                let same = |frame| atlas.color(frame) == Color::Reserved;
                return by_number(entry, atlas).filter(|(frame, _)| same(*frame));
            }
            let frame = members(atlas, RegionId(pair?.to)).at_rank(rank)?;
            Some((frame, Match::Rank))
        }
    }
}
