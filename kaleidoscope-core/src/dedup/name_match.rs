//! How a frame's name matches the names in other guests, or other names in its own.

use crate::color::UnknownName;
use std::fmt;
use std::str::FromStr;

/// How a frame's name matches known names, from the weakest match to the strongest. "Page" is the
/// page at the same position of the file or kernel.
///
/// Build ids are known if [`BuildIds`](super::BuildIds) were read. The ids of two files are
/// compared only if both files have one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum NameMatch {
    /// No other guest has a region of this name.
    None = 0,
    /// Another guest has a region of this name, but not this page of it, or its positions are not
    /// comparable.
    Namesake = 1,
    /// Another file of the guest has the same base name and reaches as far: `de/LC_MESSAGES/git.mo`
    /// and `fr/LC_MESSAGES/git.mo`.
    Sibling = 2,
    /// The page is in another build of the kernel.
    OtherBuild = 3,
    /// The page is in a file of the same path with another build id or, where build ids are not
    /// known, with another last page.
    OtherFile = 4,
    /// The page is in a file of the same path and last page, and build ids are not known.
    LikeFile = 5,
    /// The page is in the same build of the kernel.
    SameBuild = 6,
    /// The page is in a file of the same path and build id or, where build ids are not known, of
    /// the same path and inode number.
    SameFile = 7,
}

impl NameMatch {
    /// Every name match, in numeric order.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Namesake,
        Self::Sibling,
        Self::OtherBuild,
        Self::OtherFile,
        Self::LikeFile,
        Self::SameBuild,
        Self::SameFile,
    ];

    /// The name used in files and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Namesake => "namesake",
            Self::Sibling => "sibling",
            Self::OtherBuild => "other-build",
            Self::OtherFile => "other-file",
            Self::LikeFile => "like-file",
            Self::SameBuild => "same-build",
            Self::SameFile => "same-file",
        }
    }
}

impl fmt::Display for NameMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for NameMatch {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|name_match| name_match.name() == name);
        found.ok_or_else(|| UnknownName::new("name match", name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_round_trip() {
        for (number, name_match) in NameMatch::ALL.into_iter().enumerate() {
            assert_eq!(name_match as usize, number);
            assert_eq!(name_match.name().parse(), Ok(name_match));
        }
        assert!("cousin".parse::<NameMatch>().is_err());
    }
}
