//! Tables of the fingerprints of a guest's frames.

use super::bits::Bits;
use super::{Content, DomainId, FINGERPRINT_BYTES, Fingerprint};
use crate::addr::FrameIndex;
use thiserror::Error;

/// Fingerprints of some frames of a guest, and the set of frames that were read and are all zeros.
///
/// Takes 16 bytes per fingerprint and 3.5 bits per frame of the guest. Lookups take constant time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fingerprints {
    domain: DomainId,
    frames: u32,
    hashed: Bits,
    zero: Bits,
    values: Vec<Fingerprint>,
}

/// Why bytes are not the fingerprints of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum FingerprintsError {
    /// A set of frames does not have one bit per frame of the guest.
    #[error("the set of {set} frames is not one bit for each of {frames} frames")]
    Set {
        /// Which set.
        set: &'static str,
        /// Frames of the guest.
        frames: u32,
    },
    /// A frame is both hashed and zero.
    #[error("a frame is in the sets of hashed and of zero frames")]
    Both,
    /// The number of fingerprints differs from the number of hashed frames.
    #[error("{bytes} bytes of fingerprints for {hashed} hashed frames")]
    Values {
        /// Bytes present.
        bytes: usize,
        /// Frames in the set.
        hashed: u32,
    },
}

impl Fingerprints {
    /// A table of the results of [`contents`](super::contents) for a guest with `frames` frames. If
    /// a frame occurs several times, its last result counts; frames past the end are ignored.
    #[must_use]
    pub fn new(
        domain: DomainId,
        frames: u32,
        found: impl IntoIterator<Item = (FrameIndex, Content)>,
    ) -> Self {
        let mut found: Vec<_> = found.into_iter().filter(|(frame, _)| frame.0 < frames).collect();
        if !found.is_sorted_by(|a, b| a.0 < b.0) {
            // The sort is stable, so after the reversal `dedup_by_key` keeps the last result of a
            // frame.
            found.reverse();
            found.sort_by_key(|(frame, _)| *frame);
            found.dedup_by_key(|(frame, _)| *frame);
        }
        let zero = found.iter().filter(|(_, content)| *content == Content::Zero);
        let page = |(frame, content): &(FrameIndex, Content)| match content {
            Content::Page(fingerprint) => Some((*frame, *fingerprint)),
            Content::Zero | Content::Missing => None,
        };
        Self {
            domain,
            frames,
            zero: Bits::of(frames, zero.map(|(frame, _)| *frame)),
            hashed: Bits::of(frames, found.iter().filter_map(page).map(|(frame, _)| frame)),
            values: found.iter().filter_map(page).map(|(_, fingerprint)| fingerprint).collect(),
        }
    }

    /// A table from [`hashed_set`](Self::hashed_set), [`zero_set`](Self::zero_set) and
    /// [`value_bytes`](Self::value_bytes). Takes memory in proportion to these bytes.
    ///
    /// # Errors
    /// [`FingerprintsError`] if they contradict each other or the number of frames.
    pub fn from_parts(
        domain: DomainId,
        frames: u32,
        hashed: &[u8],
        zero: &[u8],
        values: &[u8],
    ) -> Result<Self, FingerprintsError> {
        let set = |set, bytes| {
            Bits::from_bytes(frames, bytes).ok_or(FingerprintsError::Set { set, frames })
        };
        let (hashed, zero) = (set("hashed", hashed)?, set("zero", zero)?);
        if !hashed.is_disjoint(&zero) {
            return Err(FingerprintsError::Both);
        }
        let (values, rest) = values.as_chunks::<FINGERPRINT_BYTES>();
        if values.len() != hashed.len() as usize || !rest.is_empty() {
            let bytes = values.len().saturating_mul(FINGERPRINT_BYTES).saturating_add(rest.len());
            return Err(FingerprintsError::Values { bytes, hashed: hashed.len() });
        }
        let values = values.iter().map(|value| Fingerprint(*value)).collect();
        Ok(Self { domain, frames, hashed, zero, values })
    }

    /// The domain in which these fingerprints are comparable.
    #[must_use]
    pub fn domain(&self) -> DomainId {
        self.domain
    }

    /// Frames of the guest, fingerprinted or not.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Number of fingerprints.
    #[must_use]
    pub fn hashed(&self) -> u32 {
        self.hashed.len()
    }

    /// Number of frames that were read and are all zeros.
    #[must_use]
    pub fn zero(&self) -> u32 {
        self.zero.len()
    }

    /// A frame's fingerprint; `None` if the frame was not hashed.
    #[must_use]
    pub fn get(&self, frame: FrameIndex) -> Option<Fingerprint> {
        self.values.get(self.hashed.rank(frame)?).copied()
    }

    /// Whether the frame was read and is all zeros.
    #[must_use]
    pub fn is_zero(&self, frame: FrameIndex) -> bool {
        self.zero.contains(frame)
    }

    /// The hashed frames in order.
    pub fn iter(&self) -> impl Iterator<Item = (FrameIndex, Fingerprint)> + '_ {
        self.hashed.iter().zip(self.values.iter().copied())
    }

    /// The hashed frames as one bit per frame of the guest: bit n of byte m is frame 8 m + n.
    #[must_use]
    pub fn hashed_set(&self) -> Vec<u8> {
        self.hashed.to_bytes()
    }

    /// The zero frames, likewise.
    #[must_use]
    pub fn zero_set(&self) -> Vec<u8> {
        self.zero.to_bytes()
    }

    /// The fingerprints of the hashed frames in order.
    #[must_use]
    pub fn value_bytes(&self) -> Vec<u8> {
        self.values.iter().flat_map(|value| value.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const DOMAIN: DomainId = DomainId([4; 16]);

    fn content(byte: u8) -> Content {
        match byte {
            0 => Content::Zero,
            1 => Content::Missing,
            _ => Content::Page(Fingerprint([byte; 16])),
        }
    }

    proptest! {
        #[test]
        fn the_last_result_of_a_frame_counts(
            frames in 1u32..200,
            found in prop::collection::vec((0u32..220, 0u8..6), 0..150),
        ) {
            let of = |(frame, byte): &(u32, u8)| (FrameIndex(*frame), content(*byte));
            let table = Fingerprints::new(DOMAIN, frames, found.iter().map(of));
            let in_ram = found.iter().map(of).filter(|(f, _)| f.0 < frames);
            let expected: BTreeMap<_, _> = in_ram.collect();
            for frame in (0..230).map(FrameIndex) {
                let content = expected.get(&frame).copied().unwrap_or(Content::Missing);
                let page = if let Content::Page(page) = content { Some(page) } else { None };
                prop_assert_eq!(table.get(frame), page);
                prop_assert_eq!(table.is_zero(frame), content == Content::Zero);
            }
            prop_assert_eq!(table.iter().count(), table.hashed() as usize);
            prop_assert!(table.iter().all(|(frame, value)| table.get(frame) == Some(value)));
            let again = Fingerprints::from_parts(
                DOMAIN, frames, &table.hashed_set(), &table.zero_set(), &table.value_bytes());
            prop_assert_eq!(again, Ok(table));
        }
    }

    #[test]
    fn parts_that_contradict_each_other_are_refused() {
        let parts = |hashed: &[u8], zero: &[u8], values: &[u8]| {
            Fingerprints::from_parts(DOMAIN, 10, hashed, zero, values)
        };
        assert!(parts(&[1, 0], &[2, 0], &[0; 16]).is_ok());
        let wrong = |set| Err(FingerprintsError::Set { set, frames: 10 });
        assert_eq!(parts(&[1], &[2, 0], &[0; 16]), wrong("hashed"));
        assert_eq!(parts(&[1, 0], &[2, 4], &[0; 16]), wrong("zero"));
        assert_eq!(parts(&[1, 0], &[1, 0], &[0; 16]), Err(FingerprintsError::Both));
        let short = Err(FingerprintsError::Values { bytes: 15, hashed: 1 });
        assert_eq!(parts(&[1, 0], &[0, 0], &[0; 15]), short);
        assert!(parts(&[3, 0], &[0, 0], &[0; 48]).is_err());
    }
}
