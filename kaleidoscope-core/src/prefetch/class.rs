//! Classes: colors, subdivided where frames of one color behave differently.

use super::LocalityOrder;
use crate::addr::FrameIndex;
use crate::color::{Color, FrameKind, Temperature, UnknownName};
use bitvec::slice::BitSlice;
use bitvec::vec::BitVec;
use std::fmt;
use std::str::FromStr;

/// Most pages of a small file. Small files are read whole, and files that were once read together
/// are read together again; larger files are accessed independently of each other.
pub(super) const SMALL_FILE: u32 = 32;

/// Most pages of a medium file.
const MEDIUM_FILE: u32 = 256;

/// Most frames of a small and of a medium slab cache.
const SMALL_CACHE: u32 = 16;
const MEDIUM_CACHE: u32 = 64;

/// Class of a frame as policies see it: one number per kind of access pattern. Settings give each
/// class its windows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Class(u8);

/// Names of the classes that subdivide a color.
const REFINED: [&str; 8] = [
    "file-cache/small",
    "file-cache/medium",
    "slab/inodes",
    "slab/dentries",
    "slab/tree-nodes",
    "slab/small",
    "slab/medium",
    "anonymous/recent",
];

impl Class {
    /// Number of classes.
    pub const COUNT: usize = Color::ALL.len() + REFINED.len();

    const FILE_SMALL: Self = Self::refined(0);
    const FILE_MEDIUM: Self = Self::refined(1);
    const SLAB_INODES: Self = Self::refined(2);
    const SLAB_DENTRIES: Self = Self::refined(3);
    const SLAB_NODES: Self = Self::refined(4);
    const SLAB_SMALL: Self = Self::refined(5);
    const SLAB_MEDIUM: Self = Self::refined(6);
    const ANONYMOUS_RECENT: Self = Self::refined(7);
}

impl Class {
    const fn refined(number: u8) -> Self {
        // Both lists are short constants.
        #[expect(clippy::cast_possible_truncation, reason = "a palette has fewer than 256 colors")]
        let colors = Color::ALL.len() as u8;
        Self(colors + number)
    }

    const fn plain(color: Color) -> Self {
        Self(color as u8)
    }

    /// Every class: the colors, then their subdivisions.
    pub fn all() -> impl Iterator<Item = Self> {
        (0u8..).map(Self).take(Self::COUNT)
    }

    /// Index into arrays with one entry per class.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The class at such an index.
    #[must_use]
    pub fn from_index(index: usize) -> Option<Self> {
        u8::try_from(index).ok().filter(|n| usize::from(*n) < Self::COUNT).map(Self)
    }

    /// The name used in policy files: the color's name, with a subdivision after a slash.
    #[must_use]
    pub fn name(self) -> &'static str {
        match Color::from_u8(self.0) {
            Some(color) => color.name(),
            None => REFINED.get(self.index() - Color::ALL.len()).copied().unwrap_or("unknown"),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Class {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::all()
            .find(|c| c.name() == name)
            .ok_or_else(|| UnknownName::new("class of frames", name))
    }
}

/// The class of every frame, and whether it is hot, i.e. bears a hint that it will be used.
#[derive(Clone, Debug, Default)]
pub(super) struct Classes {
    of: Vec<Class>,
    /// Bytes, not bits: `BitVec` takes 1.8 ns per frame to build, which every new locality order
    /// would pay, and decisions read it beside `of`, which has a byte per frame, too.
    hot: Vec<bool>,
}

impl Classes {
    pub(super) fn new(locality: &LocalityOrder) -> Self {
        let map = locality.map();
        // Slab caches that hold inodes, found through the anchors of the files.
        let mut holds_inodes: BitVec = BitVec::repeat(false, locality.stretches());
        for region in map.regions().iter().filter(|r| r.kind == FrameKind::File) {
            let stretch = region.anchor.and_then(|frame| locality.stretch(frame));
            if let Some(mut holds) = stretch.and_then(|s| holds_inodes.get_mut(s as usize)) {
                *holds = true;
            }
        }
        let frames = (0..map.len()).filter_map(|i| u32::try_from(i).ok()).map(FrameIndex);
        let of = frames.map(|frame| class(locality, frame, &holds_inodes)).collect();
        let hot = map.colors().iter().zip(map.temperatures()).map(|(c, t)| is_hot(*c, *t));
        Self { of, hot: hot.collect() }
    }

    pub(super) fn of(&self, frame: FrameIndex) -> Class {
        self.of.get(frame.as_usize()).copied().unwrap_or(Class::plain(Color::Unknown))
    }

    pub(super) fn is_hot(&self, frame: FrameIndex) -> bool {
        self.hot.get(frame.as_usize()).copied().unwrap_or(false)
    }
}

fn class(locality: &LocalityOrder, frame: FrameIndex, holds_inodes: &BitSlice) -> Class {
    let color = locality.color(frame);
    let stretch = locality.stretch(frame).unwrap_or(u32::MAX) as usize;
    let region = locality.map().regions().get(stretch);
    let frames = region.map_or(0, |r| r.frames);
    let recent = |f: FrameIndex| {
        let temperature = locality.map().temperatures().get(f.as_usize());
        temperature.is_some_and(|t| t.contains(Temperature::RECENT_TASK))
    };
    match color {
        Color::FileCache if frames <= SMALL_FILE => Class::FILE_SMALL,
        Color::FileCache if frames <= MEDIUM_FILE => Class::FILE_MEDIUM,
        Color::Slab if holds_inodes.get(stretch).is_some_and(|holds| *holds) => Class::SLAB_INODES,
        Color::Slab => match region.map_or("", |r| r.name.as_str()) {
            "dentry" => Class::SLAB_DENTRIES,
            "radix_tree_node" => Class::SLAB_NODES,
            _ if frames <= SMALL_CACHE => Class::SLAB_SMALL,
            _ if frames <= MEDIUM_CACHE => Class::SLAB_MEDIUM,
            _ => Class::plain(color),
        },
        Color::Anonymous if recent(frame) => Class::ANONYMOUS_RECENT,
        Color::Unknown
        | Color::Free
        | Color::KernelText
        | Color::KernelRodata
        | Color::KernelData
        | Color::KernelModule
        | Color::PerCpu
        | Color::FrameTable
        | Color::PageTable
        | Color::KernelStack
        | Color::Vmalloc
        | Color::KernelAlloc
        | Color::Reserved
        | Color::Anonymous
        | Color::AnonymousCode
        | Color::Shared
        | Color::FileCode
        | Color::FileMapped
        | Color::FileCache
        | Color::BlockCache
        | Color::Hugetlb
        | Color::Offline => Class::plain(color),
    }
}

/// Whether a frame is likelier to be used than others of its class. The hint that counts depends
/// on the color: accessed bits mean little where every page has been accessed since boot.
fn is_hot(color: Color, signs: Temperature) -> bool {
    match color {
        Color::KernelText | Color::KernelRodata | Color::KernelData => {
            signs.contains(Temperature::FREQUENT)
        }
        Color::FileCode | Color::FileMapped | Color::FileCache => {
            signs.contains(Temperature::ACCESSED | Temperature::RECENT_TASK)
        }
        Color::Slab | Color::KernelStack | Color::PageTable | Color::KernelAlloc => {
            signs.contains(Temperature::RECENT_TASK)
        }
        Color::Unknown
        | Color::Free
        | Color::KernelModule
        | Color::PerCpu
        | Color::FrameTable
        | Color::Vmalloc
        | Color::Reserved
        | Color::Anonymous
        | Color::AnonymousCode
        | Color::Shared
        | Color::BlockCache
        | Color::Hugetlb
        | Color::Offline => signs.contains(Temperature::ACCESSED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_parse() {
        for class in Class::all() {
            assert_eq!(class.name().parse(), Ok(class));
            assert_eq!(Class::from_index(class.index()), Some(class));
        }
        assert_eq!(Class::all().count(), Class::COUNT);
        assert_eq!(Class::ANONYMOUS_RECENT.index(), Class::COUNT - 1);
        assert!("mauve".parse::<Class>().is_err());
        assert_eq!(Class::from_index(Class::COUNT), None);
    }
}
