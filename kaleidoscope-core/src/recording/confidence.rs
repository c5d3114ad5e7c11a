//! How likely a translated frame is to be accessed again.

use crate::color::Color;
use std::fmt;

/// How similar two guests are, according to the recording and the image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Similarity {
    /// The recorded snapshot itself.
    Snapshot,
    /// Another snapshot, boot or machine with the same kernel image.
    Kernel,
    /// Another kernel.
    Other,
}

/// How a recorded entry was found in an image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Match {
    /// By frame number alone.
    FrameNumber = 0,
    /// By file and offset.
    FileOffset = 1,
    /// By process and address: the page is at its recorded address.
    SameAddress = 2,
    /// By process and address, after aligning the address spaces.
    MovedAddress = 3,
    /// By address in the kernel's own address space.
    /// By place in the kernel's own address space.
    KernelAddress = 4,
    /// By rank in a region.
    Rank = 5,
}

impl Match {
    /// Every variant, in numeric order.
    pub const ALL: [Self; 6] = [
        Self::FrameNumber,
        Self::FileOffset,
        Self::SameAddress,
        Self::MovedAddress,
        Self::KernelAddress,
        Self::Rank,
    ];

    /// The name used in tables and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FrameNumber => "frame-number",
            Self::FileOffset => "file-offset",
            Self::SameAddress => "same-address",
            Self::MovedAddress => "moved-address",
            Self::KernelAddress => "kernel-address",
            Self::Rank => "rank",
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How often an entry that was found this way was accessed again by the same program.
///
/// Measured by translating recordings of one program between a guest of 512 MiB with Linux 6.1 and
/// one of 1 GiB with 6.12 whose disks hold the same files; the test `real_recordings_carry_over`
/// prints the table. The figures for another boot of the same kernel are estimates: there, kernel
/// addresses hold the same objects.
pub(super) fn factor(how: Match, color: Color, likeness: Similarity) -> f32 {
    match likeness {
        // The same bytes at the same place; only the number of runs that accessed the frame
        // remains uncertain.
        Similarity::Snapshot => 1.0,
        Similarity::Kernel if how == Match::KernelAddress && color != Color::FrameTable => 0.9,
        Similarity::Kernel | Similarity::Other => other_kernel_factor(how, color),
    }
}

/// Factors for a guest with another kernel. Comments give the measured shares.
fn other_kernel_factor(how: Match, color: Color) -> f32 {
    match (how, color) {
        // 0.06 and 1.00: which disk metadata is read depends on the rest of the cache.
        (Match::FileOffset, Color::BlockCache) => 0.1,
        // 1.00 of 10,880 pages.
        (Match::FileOffset, _) => 0.98,
        // 0.93 to 1.00.
        (Match::SameAddress, _) => 0.95,
        // 0.997 to 0.999.
        (Match::MovedAddress, _) => 0.95,
        // 0.26 to 0.30: another build has its functions at other addresses.
        (Match::KernelAddress, Color::KernelText) => 0.25,
        // 0.73 to 0.76.
        (Match::KernelAddress, Color::PerCpu) => 0.7,
        // 0.49 to 0.50: the table describes frames by number, whose contents differ per boot.
        (Match::KernelAddress, Color::FrameTable) => 0.45,
        // 0.85 to 0.92.
        (Match::Rank, Color::PageTable) => 0.85,
        // 0.33 to 0.37, mostly in caches that are accessed throughout.
        (Match::Rank, Color::Slab) => 0.2,
        // Kernel data, modules, stacks, vmalloc: 0.00 to 0.09.
        _ => 0.04,
    }
}
