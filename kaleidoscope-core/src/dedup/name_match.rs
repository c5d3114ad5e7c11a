//! What is known of a frame elsewhere: how its name relates to names of other guests, or to others
//! in its own.

use crate::color::UnknownName;
use std::fmt;
use std::str::FromStr;

/// How a frame's name relates to the names that are known, from the weakest name_match to the
/// strongest.
///
/// A build id is known where [`BuildIds`](super::BuildIds) were read. Of two files, it counts only
/// if both of them have one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum NameMatch {
    /// Nobody else has something of this name.
    None = 0,
    /// Others have something of this name, but not this part of it, or its parts have no names.
    Namesake = 1,
    /// Another file of the guest has the same base name and reaches as far: `de/LC_MESSAGES/git.mo`
    /// and `fr/LC_MESSAGES/git.mo`.
    Sibling = 2,
    /// This page of another build of the kernel.
    OtherBuild = 3,
    /// This page of a file of the same path, but with another build id; with another last page
    /// where ids are not known.
    OtherFile = 4,
    /// This page of a file of the same path with the same last page, where build ids are not known.
    LikeFile = 5,
    /// This page of the same build of the kernel.
    SameBuild = 6,
    /// This page of a file of the same path and build id; of the same path and inode number where
    /// build ids are not known.
    SameFile = 7,
}

impl NameMatch {
    /// Every name_match, in numeric order.
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
        found.ok_or_else(|| UnknownName::new("name_match", name))
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
