//! Translates a recording to another image.

use super::confidence::factor;
use super::pairing::{Pair, pair};
use super::region::members;
use super::{Entry, Key, Match, Recording, Similarity};
use crate::addr::FrameIndex;
use crate::color::{Color, Order, RegionId};
use crate::identity::ImageIdentity;
use crate::prefetch::LocalityOrder;
use bitvec::vec::BitVec;

/// A frame of the image that corresponds to a recorded entry.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TranslatedEntry {
    /// The frame.
    pub frame: FrameIndex,
    /// Likelihood that it is accessed, 0 to 1: the share of runs that accessed it, times the
    /// confidence in the match.
    pub confidence: f32,
    /// How it was found.
    pub how: Match,
    /// The entry's position in [`Recording::entries`].
    pub entry: u32,
}

/// The frames of an image that correspond to a recording.
#[derive(Clone, PartialEq, Debug)]
pub struct TranslatedRecording {
    /// How similar the image is to the recorded one.
    pub likeness: Similarity,
    /// The frames in recorded order, each once; none of them is free.
    pub frames: Vec<TranslatedEntry>,
    /// Number of recorded entries that were found, per color. Indexed by the color's number.
    pub found: [u32; Color::ALL.len()],
    /// Number of recorded entries that were not found, per color.
    pub missing: [u32; Color::ALL.len()],
}

impl TranslatedRecording {
    /// The frames with at least this confidence, in recorded order.
    pub fn at_least(&self, confidence: f32) -> impl Iterator<Item = &TranslatedEntry> + '_ {
        self.frames.iter().filter(move |t| t.confidence >= confidence)
    }
}

impl Recording {
    /// How similar an image is to the recorded one. Without the image's identity it cannot be
    /// recognized as the same snapshot, and counts as another one.
    #[must_use]
    pub fn likeness(&self, locality: &LocalityOrder, image: Option<&ImageIdentity>) -> Similarity {
        let (ours, theirs) = (self.kernel(), locality.map().kernel());
        if image == Some(&self.image()) {
            Similarity::Snapshot
        } else if ours == theirs && !(ours.build_id.is_empty() && ours.banner.is_empty()) {
            Similarity::Kernel
        } else {
            Similarity::Other
        }
    }

    /// Finds the recorded frames in another image through their keys. `image` is the image's
    /// identity, if known; see [`Recording::likeness`].
    #[must_use]
    pub fn translate(
        &self,
        locality: &LocalityOrder,
        image: Option<&ImageIdentity>,
    ) -> TranslatedRecording {
        let likeness = self.likeness(locality, image);
        let pairs = pair(self, locality, likeness);
        self.collect(locality, likeness, |entry| find(entry, self, locality, &pairs, likeness))
    }

    /// Finds the recorded frames by number alone: correct for the same snapshot, a guess for any
    /// other. Frames that are free in the image are left out.
    #[must_use]
    pub fn by_frame_number(
        &self,
        locality: &LocalityOrder,
        image: Option<&ImageIdentity>,
    ) -> TranslatedRecording {
        let likeness = self.likeness(locality, image);
        self.collect(locality, likeness, |entry| by_number(entry, locality))
    }

    fn collect(
        &self,
        locality: &LocalityOrder,
        likeness: Similarity,
        find: impl Fn(&Entry) -> Option<(FrameIndex, Match)>,
    ) -> TranslatedRecording {
        let mut taken: BitVec = BitVec::repeat(false, locality.frames() as usize);
        let mut out = TranslatedRecording {
            likeness,
            frames: Vec::with_capacity(self.entries().len().min(taken.len())),
            found: [0; Color::ALL.len()],
            missing: [0; Color::ALL.len()],
        };
        for (number, entry) in (0u32..).zip(self.entries()) {
            let found = find(entry).filter(|(frame, _)| !locality.is_free(*frame));
            let found = found.filter(|(frame, _)| {
                let taken = taken.get_mut(frame.as_usize());
                taken.is_some_and(|mut taken| !taken.replace(true))
            });
            let count = if found.is_some() { &mut out.found } else { &mut out.missing };
            if let Some(count) = count.get_mut(entry.color as usize) {
                *count += 1;
            }
            let Some((frame, how)) = found else { continue };
            #[expect(clippy::cast_possible_truncation, reason = "a share")]
            let share = self.share(entry) as f32;
            let confidence = share * factor(how, entry.color, likeness);
            out.frames.push(TranslatedEntry { frame, confidence, how, entry: number });
        }
        out
    }
}

/// Finds an entry by its frame number.
fn by_number(entry: &Entry, locality: &LocalityOrder) -> Option<(FrameIndex, Match)> {
    Some((locality.layout().index_of(entry.gfn?)?, Match::FrameNumber))
}

/// Finds an entry by its key.
fn find(
    entry: &Entry,
    recording: &Recording,
    locality: &LocalityOrder,
    pairs: &[Option<Pair>],
    likeness: Similarity,
) -> Option<(FrameIndex, Match)> {
    let pair = entry.key.region().and_then(|region| pairs.get(region as usize)?.as_ref());
    match entry.key {
        Key::Frame => by_number(entry, locality).filter(|_| likeness == Similarity::Snapshot),
        Key::Position { region, position, nth } => {
            let pair = pair?;
            let translated = pair.position(position)?;
            let frame = members(locality, RegionId(pair.to)).at(translated, nth)?;
            let how = match recording.regions().get(region as usize)?.order {
                Order::FileOffset => Match::FileOffset,
                Order::UserAddress if translated == position => Match::SameAddress,
                Order::UserAddress => Match::MovedAddress,
                Order::KernelAddress => Match::KernelAddress,
                Order::FrameNumber | Order::Allocation => Match::Rank,
            };
            Some((frame, how))
        }
        Key::Rank { rank, .. } => {
            // Memory reserved by firmware and boot loader is at the same frames on every boot.
            if entry.color == Color::Reserved && likeness != Similarity::Snapshot {
                let same = |frame| locality.color(frame) == Color::Reserved;
                return by_number(entry, locality).filter(|(frame, _)| same(*frame));
            }
            let frame = members(locality, RegionId(pair?.to)).at_rank(rank)?;
            Some((frame, Match::Rank))
        }
    }
}
