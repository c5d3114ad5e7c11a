//! Working-set recordings: the frames that clones accessed, in order, in a form that applies to
//! other clones, boots, kernels and builds.
//!
//! A [`Recording`] names a frame by its contents (page 3 of `/usr/bin/python3`, the 40th page of
//! python3's heap) and not by its number alone, so that it can be found in another guest:
//!
//! ```text
//!  trace + locality ──from_trace──► Recording ──translate──► frames of another image,
//!                                    │  ▲  ▲                  each with a confidence
//!                              merge └──┘  └── a file (`.krec`), see docs/formats.md
//! ```
//!
//! Translation takes two steps: `pairing` finds the counterpart of each recorded region in the
//! other guest, and `alignment` finds where randomized user addresses moved. `confidence` rates
//! each match.

mod alignment;
mod confidence;
mod decode;
#[cfg(test)]
mod doc_example;
mod encode;
mod error;
mod limits;
mod merge;
mod pairing;
mod region;
mod salt;
#[cfg(test)]
mod tests;
mod translate;

pub use confidence::{Match, Similarity};
pub use error::{MergeError, RecordingError};
pub use limits::RecordingLimits;
pub use region::{PageRange, RecordedRegion};
pub use salt::Salt;
pub use translate::{TranslatedEntry, TranslatedRecording};

use crate::addr::{FrameIndex, Gfn};
use crate::codec::ManifestError;
use crate::codec::container::{self, Family};
use crate::color::{Color, KernelIdentity, RegionId};
use crate::identity::ImageIdentity;
use crate::prefetch::LocalityOrder;
use crate::replay::Trace;
use region::{is_ranked, members};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;

/// The file family of recordings.
const FAMILY: Family = Family { name: "recording", magic: *b"KREC\x1a\r\n\n", version: 1 };

/// The rank after the last frame of a run; ranks are fractions of it.
pub const RANK_ONE: u64 = 1 << 24;

/// Most runs in a recording, which keeps sums of ranks from overflowing.
pub const MAX_RUNS: u32 = 1 << 20;

/// Identity of an accessed frame's contents, independent of the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Key {
    /// Only the frame number is known: the frame is in no region.
    Frame,
    /// A position in the natural order of a region: a page of a file, a process or the kernel
    /// image.
    Position {
        /// Number of the region in [`Recording::regions`].
        region: u32,
        /// The position.
        position: u64,
        /// Index among the frames of the region at the same position.
        nth: u32,
    },
    /// The n-th frame of a region whose positions are meaningless in another guest, such as a slab
    /// cache.
    Rank {
        /// Number of the region in [`Recording::regions`].
        region: u32,
        /// Number of frames of the region before it.
        rank: u32,
    },
}

impl Key {
    /// The region, if any.
    #[must_use]
    pub fn region(&self) -> Option<u32> {
        match *self {
            Self::Frame => None,
            Self::Position { region, .. } | Self::Rank { region, .. } => Some(region),
        }
    }
}

/// An accessed frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Frame number in the guest of [`Recording::image`]; `None` if only runs of other guests
    /// accessed it.
    pub gfn: Option<Gfn>,
    /// Identity of its contents.
    pub key: Key,
    /// Its color.
    pub color: Color,
    /// Number of runs in which it was accessed, at least 1.
    pub runs: u32,
    /// Sum of its ranks over those runs: `i * RANK_ONE / n` for the `i`-th of the `n` frames of a
    /// run. A sum makes merging exact in any order.
    pub ranks: u64,
}

impl Entry {
    /// Its mean rank in a run, from 0 for the first frame to just below 1 for the last.
    #[must_use]
    pub fn mean_rank(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "at most 2^44")]
        let sum = self.ranks as f64;
        #[expect(clippy::cast_precision_loss, reason = "2^24")]
        let one = RANK_ONE as f64;
        sum / one / f64::from(self.runs.max(1))
    }

    /// Sort order of entries: by mean rank, then by key and frame number.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let cross = |a: &Self, b: &Self| u128::from(a.ranks).saturating_mul(u128::from(b.runs));
        cross(self, other)
            .cmp(&cross(other, self))
            .then_with(|| self.key.cmp(&other.key))
            .then_with(|| self.gfn.cmp(&other.gfn))
    }
}

/// The frames that runs of a guest's clones accessed, in order of first access.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recording {
    kernel: KernelIdentity,
    image: ImageIdentity,
    runs: u32,
    salt: Option<Salt>,
    regions: Vec<RecordedRegion>,
    entries: Vec<Entry>,
}

impl Recording {
    /// Records one run. `locality` is that of the guest's snapshot image, whose identity is
    /// `image`. Frames that were free in the image are left out, because their contents are the
    /// clone's own.
    #[must_use]
    pub fn from_trace(trace: &Trace, locality: &LocalityOrder, image: ImageIdentity) -> Self {
        let touched: Vec<FrameIndex> =
            trace.touches().iter().map(|t| t.frame).filter(|f| !locality.is_free(*f)).collect();
        let mut regions = Vec::new();
        let mut numbers: HashMap<RegionId, u32> = HashMap::new();
        let mut entries = Vec::with_capacity(touched.len());
        let n = u64::try_from(touched.len()).unwrap_or(u64::MAX).max(1);
        for (i, index) in (0u64..).zip(touched) {
            let Some(frame) = locality.map().frame(index) else { continue };
            let region = frame.region.and_then(|id| Some((id, locality.map().region(id)?)));
            let key = region.map_or(Key::Frame, |(id, region)| {
                let number = *numbers.entry(id).or_insert_with(|| {
                    regions.push(RecordedRegion::of(locality, id, region));
                    to_u32(regions.len()).saturating_sub(1)
                });
                let members = members(locality, id);
                if is_ranked(region.kind, region.order) {
                    let start = locality.range(id.0).start;
                    let rank = locality.position(index).unwrap_or(start).saturating_sub(start);
                    return Key::Rank { region: number, rank };
                }
                let nth = members.rank(index).saturating_sub(members.before(frame.position));
                Key::Position { region: number, position: frame.position, nth: to_u32(nth) }
            });
            entries.push(Entry {
                gfn: locality.layout().gfn_of(index),
                key,
                color: frame.color,
                runs: 1,
                // Less than 2^32 * 2^24.
                ranks: i.saturating_mul(RANK_ONE) / n,
            });
        }
        entries.sort_by(Entry::order);
        Self {
            kernel: locality.map().kernel().clone(),
            image,
            runs: 1,
            salt: None,
            regions,
            entries,
        }
    }

    /// The kernel of the recorded guest; of the first guest, if several were merged.
    #[must_use]
    pub fn kernel(&self) -> &KernelIdentity {
        &self.kernel
    }

    /// The snapshot that frame numbers refer to.
    #[must_use]
    pub fn image(&self) -> ImageIdentity {
        self.image
    }

    /// Number of runs in the recording.
    #[must_use]
    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// The salt that names were hashed with, if any.
    #[must_use]
    pub fn salt(&self) -> Option<Salt> {
        self.salt
    }

    /// The regions that entries lie in.
    #[must_use]
    pub fn regions(&self) -> &[RecordedRegion] {
        &self.regions
    }

    /// The accessed frames by mean rank.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Share of the runs in which an entry's frame was accessed, 0 to 1.
    #[must_use]
    pub fn share(&self, entry: &Entry) -> f64 {
        f64::from(entry.runs) / f64::from(self.runs.max(1))
    }

    /// Replaces the names of files and processes by the first 12 bytes of a SHA-256 over salt and
    /// name. The recording translates as before, because the names of the other guest are hashed in
    /// the same way. An already hashed recording stays as it is.
    ///
    /// # What it protects
    /// A reader of the file does not learn names that they cannot guess, and recordings with
    /// different salts cannot be compared by their hashes. It does *not* hide whether a suspected
    /// name occurs: the salt is in the file, so a reader can hash the name and search for it. Paths
    /// of a distribution's packages are therefore as good as readable. Kernel names, file system
    /// types, sizes, process ids, offsets and the order of accesses stay readable.
    #[must_use]
    pub fn hashed(mut self, salt: Salt) -> Self {
        if self.salt.is_none() {
            for region in &mut self.regions {
                region.name = salt.hash_name(region.kind, region.order, &region.name);
            }
            self.salt = Some(salt);
        }
        self
    }

    /// Serializes the recording as the bytes of a file.
    ///
    /// # Errors
    /// [`ManifestError::Limit`] if the recording exceeds a limit of the format, i.e. if a reader
    /// with [`RecordingLimits::default`] would reject it; [`ManifestError::Compression`] if zstd
    /// fails (out of memory).
    pub fn to_bytes(&self) -> Result<Vec<u8>, RecordingError> {
        encode::check(self, &RecordingLimits::default())?;
        Ok(container::wrap(&FAMILY, &encode::payload(self))?)
    }

    /// Writes the recording.
    ///
    /// # Errors
    /// [`ManifestError::Io`] if `out` fails, and the errors of [`to_bytes`](Self::to_bytes).
    pub fn write_to(&self, mut out: impl Write) -> Result<(), RecordingError> {
        Ok(out.write_all(&self.to_bytes()?).map_err(ManifestError::from)?)
    }

    /// Writes the recording to a file atomically: at every instant the file has either its old or
    /// its new content.
    ///
    /// # Errors
    /// As [`Recording::write_to`].
    pub fn write_file(&self, path: &Path) -> Result<(), RecordingError> {
        Ok(container::write_atomically(path, &self.to_bytes()?)?)
    }

    /// Parses a recording that is all of `bytes`. Takes at most [`RecordingLimits::max_memory`]
    /// bytes of memory and time in proportion, for any input. This is the function to fuzz.
    ///
    /// # Errors
    /// [`RecordingError`] says what is wrong and where.
    /// [`RecordingError`], naming what is wrong and where.
    pub fn from_bytes(bytes: &[u8], limits: &RecordingLimits) -> Result<Self, RecordingError> {
        decode::payload(&container::unwrap(bytes, &FAMILY, limits.bounds())?, limits)
    }

    /// Reads a recording that is all of `input`.
    ///
    /// # Errors
    /// [`RecordingError`] says what is wrong and where.
    pub fn read_from(input: impl Read, limits: &RecordingLimits) -> Result<Self, RecordingError> {
        Self::from_bytes(&container::read_bounded(input, &FAMILY, limits.bounds())?, limits)
    }

    /// Reads a recording file.
    ///
    /// # Errors
    /// [`RecordingError`] says what is wrong and where.
    pub fn read_file(path: &Path, limits: &RecordingLimits) -> Result<Self, RecordingError> {
        Self::read_from(std::fs::File::open(path).map_err(ManifestError::from)?, limits)
    }
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
