//! Page size of the host memory that backs a guest's RAM.

use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::memory::MemoryLayout;
use std::ops::Range;

/// Size of the host's pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum PageSize {
    /// 4 KiB: one frame each.
    #[default]
    Small,
    /// 2 MiB, from the system's hugetlb pool (`vm.nr_hugepages`): 512 frames each. The first write
    /// to a page makes all of it private. Use this for machines that run long, not for clones that
    /// write little.
    Huge,
}

impl PageSize {
    /// Bytes per page.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => FRAME_BYTES,
            Self::Huge => 2 << 20,
        }
    }

    /// Guest frames (4 KiB) per page.
    #[must_use]
    pub const fn frames(self) -> u32 {
        match self {
            Self::Small => 1,
            Self::Huge => 512,
        }
    }

    /// Rounds a number of bytes up to whole pages.
    pub(crate) fn round_up(self, bytes: usize) -> usize {
        bytes.checked_next_multiple_of(self.bytes()).unwrap_or(usize::MAX)
    }

    /// Extends a range of frames to whole pages.
    pub(crate) fn whole(self, run: &Range<u32>) -> Range<u32> {
        let frames = self.frames();
        let end = run.end.checked_next_multiple_of(frames).unwrap_or(u32::MAX);
        run.start / frames * frames..end
    }
}

/// RAM of a new machine: its layout, and the host pages that back it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ram {
    /// Guest-physical layout.
    pub layout: MemoryLayout,
    /// Size of the host's pages.
    pub pages: PageSize,
}

/// RAM on 4 KiB pages.
impl From<MemoryLayout> for Ram {
    fn from(layout: MemoryLayout) -> Self {
        Self { layout, pages: PageSize::Small }
    }
}
