//! Whether free frames are filled with zeros.

use super::ports::PageSource;
use crate::color::{ColorMap, UnknownName};
use crate::coloring::Trust;
use std::fmt;
use std::str::FromStr;

/// How the clone fills frames that were free in the guest at the snapshot, or given back by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum FreeFrames {
    /// Zeros where that is known to be safe, and otherwise fetched. An engine fills free frames
    /// with zeros if all of this holds:
    ///
    /// - The map [has trusted free frames](ColorMap::has_trusted_free_frames): it comes from
    ///   [`color()`](crate::coloring::color) in this process, or from a
    ///   [verified](crate::manifest::Manifest::verify) manifest, or from a descriptor that says
    ///   [`Zero`](Self::Zero).
    /// - The page source [names its snapshot](PageSource::snapshot_id), and it is the one that the
    ///   map was made from or verified against. A map of another snapshot, even of the same guest,
    ///   calls frames free that are in use. For a descriptor, the source is a client of a server of
    ///   the same image.
    ///
    /// If any of it is unknown, free frames are fetched: that is slower, and always right.
    #[default]
    Auto,
    /// Free frames are filled with zeros on the clone's host. The guest's kernel must not rely on
    /// their contents (see [`trust`](super::trust)), and the map must be of the snapshot that pages
    /// come from, which is not checked.
    Zero,
    /// Free frames are fetched like all others: the clone has the parent's memory byte for byte.
    Fetch,
}

impl FreeFrames {
    const ALL: [Self; 3] = [Self::Auto, Self::Zero, Self::Fetch];

    /// The name used in files and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Zero => "zero",
            Self::Fetch => "fetch",
        }
    }

    /// [`Zero`](Self::Zero) or [`Fetch`](Self::Fetch), for the snapshot that the map was made from:
    /// [`Auto`](Self::Auto) is zeros if the map has trusted free frames. [`Fetch`](Self::Fetch) if
    /// the map contains contradictions, whatever `self` is. A list that does not close, blocks that
    /// overlap, or a former kernel beside the running one may mean that a frame marked as free is
    /// in use. All code that fills free frames with zeros follows this rule.
    #[must_use]
    pub fn allowed_by(self, map: &ColorMap) -> Self {
        match self {
            Self::Auto if map.has_trusted_free_frames() => Self::Zero,
            Self::Zero if map.contradictions() == 0 => Self::Zero,
            Self::Auto | Self::Zero | Self::Fetch => Self::Fetch,
        }
    }

    /// As [`allowed_by`](Self::allowed_by), for a clone whose pages come from this source:
    /// [`Auto`](Self::Auto) is zeros only if the source has the snapshot that the map is of.
    #[must_use]
    pub fn for_source(self, map: &ColorMap, source: &dyn PageSource) -> Self {
        let is_of = |snapshot| map.trusts_free_frames_of(snapshot);
        match self {
            Self::Auto if !source.snapshot_id().is_some_and(is_of) => Self::Fetch,
            Self::Auto | Self::Zero | Self::Fetch => self.allowed_by(map),
        }
    }
}

impl Trust {
    /// [`FreeFrames::Zero`] if the guest's kernel does not notice zeros in free frames.
    #[must_use]
    pub fn free_frames(&self) -> FreeFrames {
        if self.allows_zeros() { FreeFrames::Zero } else { FreeFrames::Fetch }
    }
}

impl fmt::Display for FreeFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for FreeFrames {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|f| f.name() == name);
        found.ok_or_else(|| {
            UnknownName::with_advice("treatment of free frames", name, "`auto`, `zero` or `fetch`")
        })
    }
}
