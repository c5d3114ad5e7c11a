//! The RGB values of the color map's colors.

use kaleidoscope_core::color::{Color, Frame, FrameKind, Temperature};

/// Red, green, blue.
pub(crate) type Rgb = [u8; 3];

/// The background, also of cells without a frame.
pub(super) const BACKGROUND: Rgb = [0x0b, 0x0e, 0x14];
/// Titles.
pub(super) const BRIGHT: Rgb = [0xf2, 0xf4, 0xf8];
/// Text.
pub(super) const TEXT: Rgb = [0xb9, 0xc1, 0xd0];
/// Secondary text.
pub(super) const FAINT: Rgb = [0x6b, 0x75, 0x88];

/// Families of related colors, in the order of the legend. Each family has one part of the color
/// circle.
pub(super) const FAMILIES: [(&str, &[Color]); 5] = [
    ("Processes", &[Color::Anonymous, Color::AnonymousCode, Color::Shared, Color::Hugetlb]),
    ("Files", &[Color::FileCode, Color::FileMapped, Color::FileCache, Color::BlockCache]),
    (
        "Kernel image",
        &[
            Color::KernelText,
            Color::KernelRodata,
            Color::KernelData,
            Color::KernelModule,
            Color::PerCpu,
            Color::Reserved,
        ],
    ),
    (
        "Kernel memory",
        &[
            Color::Slab,
            Color::PageTable,
            Color::KernelStack,
            Color::Vmalloc,
            Color::KernelAlloc,
            Color::FrameTable,
        ],
    ),
    ("Unused", &[Color::Free, Color::Offline, Color::Unknown]),
];

/// The RGB value of a color: greens for processes, golds for files, blues for the kernel's image,
/// violets for kernel allocations, near black for free memory, and red for unknown frames.
pub(crate) const fn rgb(color: Color) -> Rgb {
    match color {
        Color::Unknown => [0xff, 0x2d, 0x55],
        Color::Free => [0x1b, 0x21, 0x2d],
        Color::Offline => [0x45, 0x4c, 0x5a],

        Color::Anonymous => [0x2e, 0xc4, 0x7a],
        Color::AnonymousCode => [0xc4, 0xf4, 0x5c],
        Color::Shared => [0x12, 0xb5, 0xa6],
        Color::Hugetlb => [0x7d, 0xa4, 0x3a],

        Color::FileCode => [0xff, 0x7a, 0x3d],
        Color::FileMapped => [0xff, 0xd8, 0x66],
        Color::FileCache => [0xe2, 0xa2, 0x3a],
        Color::BlockCache => [0x9a, 0x5f, 0x38],

        Color::KernelText => [0x4c, 0xc9, 0xff],
        Color::KernelRodata => [0x9f, 0xd8, 0xf5],
        Color::KernelData => [0x2f, 0x7d, 0xf6],
        Color::KernelModule => [0x1f, 0xa3, 0xc9],
        Color::PerCpu => [0x74, 0x9b, 0xff],
        Color::Reserved => [0x3a, 0x4f, 0x7a],

        Color::Slab => [0x8d, 0x6b, 0xf2],
        Color::PageTable => [0xf0, 0x6c, 0xd6],
        Color::KernelStack => [0xd3, 0xa6, 0xff],
        Color::Vmalloc => [0x63, 0x4c, 0xd1],
        Color::KernelAlloc => [0xa0, 0x52, 0xb5],
        Color::FrameTable => [0x54, 0x34, 0x96],
        _ => [0xff, 0x2d, 0x55],
    }
}

/// The RGB value of a frame: its color's, brighter if it was used recently, and with a slightly
/// different shade in each region, so that neighboring files and processes can be told apart.
pub(super) fn shade(frame: &Frame) -> Rgb {
    let light = heat(frame) * grain(frame);
    rgb(frame.color).map(|channel| scale(channel, light))
}

/// Brightness from 0.7 (cold) to 1.0 (hot). Always 1.0 for kernel and free frames, which have no
/// temperature hints of this kind.
fn heat(frame: &Frame) -> f32 {
    let (processes, files) = (FAMILIES[0].1, FAMILIES[1].1);
    if !processes.contains(&frame.color) && !files.contains(&frame.color) {
        return 1.0;
    }
    let hints = [
        (Temperature::ACCESSED, 0.2),
        (Temperature::ACTIVE, 0.15),
        (Temperature::REFERENCED, 0.1),
        (Temperature::RECENT_TASK, 0.1),
    ];
    let warmth = hints.iter().filter(|s| frame.temperature.contains(s.0)).map(|s| s.1);
    (0.7 + warmth.sum::<f32>()).min(1.0)
}

/// A brightness factor near 1, equal for all frames of a region and different for neighboring
/// regions.
fn grain(frame: &Frame) -> f32 {
    let Some(region) = frame.region.filter(|_| has_many_regions(frame.kind)) else { return 1.0 };
    // Fibonacci hashing: multiplication by 2^32 / (golden ratio) spreads consecutive numbers
    // (Knuth, TAOCP volume 3, section 6.4).
    let spread = region.0.wrapping_mul(0x9e37_79b9) >> 24;
    0.9 + 0.2 * f32::from(u8::try_from(spread).unwrap_or(0)) / 255.0
}

/// Whether frames of a kind have many regions (files, processes, slab caches).
fn has_many_regions(kind: FrameKind) -> bool {
    matches!(kind, FrameKind::File | FrameKind::Shared | FrameKind::Anonymous | FrameKind::Slab)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
fn scale(channel: u8, factor: f32) -> u8 {
    (f32::from(channel) * factor).round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_color_is_in_one_family_and_distinct() {
        let mut in_families: Vec<Color> =
            FAMILIES.iter().flat_map(|(_, colors)| colors.iter().copied()).collect();
        in_families.sort();
        assert_eq!(in_families, Color::ALL);
        for (i, a) in Color::ALL.into_iter().enumerate() {
            for b in Color::ALL.into_iter().skip(i + 1) {
                let distance: u32 = rgb(a)
                    .into_iter()
                    .zip(rgb(b))
                    .map(|(a, b)| u32::from(a.abs_diff(b)).pow(2))
                    .sum();
                assert!(distance > 30 * 30, "{a} and {b} look alike");
            }
        }
    }
}
