//! The host's pages that a guest's RAM is made of.

use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::memory::MemoryLayout;
use std::ops::Range;

/// Pages of the host's memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum PageSize {
    /// 4 KiB: a frame each.
    #[default]
    Small,
    /// 2 MiB, of the system's pool (hugetlb; `vm.nr_hugepages`): 512 frames each. Whoever writes a
    /// byte owns all of them, so this is for machines that run long, not for clones that write
    /// little.
    Huge,
}

impl PageSize {
    /// Bytes of a page.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => FRAME_BYTES,
            Self::Huge => 2 << 20,
        }
    }

    /// Frames of a page.
    #[must_use]
    pub const fn frames(self) -> u32 {
        match self {
            Self::Small => 1,
            Self::Huge => 512,
        }
    }

    /// So many bytes, up to a whole number of pages.
    pub(crate) fn round_up(self, bytes: usize) -> usize {
        bytes.checked_next_multiple_of(self.bytes()).unwrap_or(usize::MAX)
    }

    /// The frames of the pages that a run touches.
    pub(crate) fn whole(self, run: &Range<u32>) -> Range<u32> {
        let frames = self.frames();
        let end = run.end.checked_next_multiple_of(frames).unwrap_or(u32::MAX);
        run.start / frames * frames..end
    }
}

/// RAM that a machine starts with: where it is, and the host's pages that it is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ram {
    /// Where it is.
    pub layout: MemoryLayout,
    /// What it is made of.
    pub pages: PageSize,
}

/// On 4 KiB pages.
impl From<MemoryLayout> for Ram {
    fn from(layout: MemoryLayout) -> Self {
        Self { layout, pages: PageSize::Small }
    }
}
