//! How all charts look.

use plotters::style::RGBColor;

pub(crate) const FONT: &str = "Helvetica, Arial, sans-serif";
pub(crate) const TEXT: RGBColor = RGBColor(0x26, 0x2b, 0x33);
pub(crate) const FAINT: RGBColor = RGBColor(0x76, 0x7e, 0x8c);
pub(crate) const GRID: RGBColor = RGBColor(0xe4, 0xe7, 0xec);
pub(crate) const SHADE: RGBColor = RGBColor(0xf1, 0xf3, 0xf6);

/// Colors of policies: near those that color-blind people tell apart too (Okabe and Ito,
/// <https://jfly.uni-koeln.de/color/>), dark enough for text, and then others.
const PALETTE: [RGBColor; 10] = [
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xc0, 0x5c, 0x94),
    RGBColor(0xc9, 0x86, 0x00),
    RGBColor(0x2b, 0x95, 0xd0),
    RGBColor(0x8a, 0x3b, 0x12),
    RGBColor(0x5b, 0x4b, 0x9a),
    RGBColor(0x1b, 0x5e, 0x4a),
    RGBColor(0x9a, 0x2a, 0x5b),
];

/// The color of a curve, by its place among all.
pub(crate) fn color(place: usize) -> RGBColor {
    PALETTE.get(place % PALETTE.len()).copied().unwrap_or(TEXT)
}
