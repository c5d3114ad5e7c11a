//! The picture of a color map, with a legend. Frames are cells along a space-filling curve.

mod canvas;
mod curve;
pub(crate) mod palette;

pub(crate) use canvas::{Canvas, Font};

use crate::map_output::statistics::{ColorFigures, Statistics, mib, thousands};
use crate::map_output::table::{percent, printable, size};
use kaleidoscope_core::color::ColorMap;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight};
use palette::{BRIGHT, FAINT, FAMILIES, Rgb, TEXT};

/// Intended side of the map, in pixels.
const MAP_SIDE: usize = 1080;

/// Most cells on a side. If there are more frames than cells, a cell is the mean of several frames.
const MAX_SIDE: usize = 2048;

/// Width of the outer margin, in pixels.
const MARGIN: usize = 48;

/// Pixels between map and legend.
const GAP: usize = 44;

/// Height of the header above the map.
const HEADER: usize = 92;

/// Width of the legend.
const LEGEND: usize = 420;

/// Height of a line of the legend.
const LINE: usize = 29;

/// Side of a swatch.
const SWATCH: usize = 18;

/// Height of the bar of shares, with the gap below.
const BAR: usize = 20;

/// Pixels above a family of colors.
const FAMILY_GAP: usize = 16;

/// The explanation of the map.
const CAPTION: [&str; 3] = [
    "One cell is one 4 KiB frame, in order of",
    "address along a Hilbert curve. Process and",
    "file frames used lately are brighter.",
];

/// Height of a line of the caption.
const CAPTION_LINE: usize = 21;

const TITLE: Font = Font { height: RasterHeight::Size32, weight: FontWeight::Bold };
const HEAD: Font = Font { height: RasterHeight::Size16, weight: FontWeight::Bold };
const BODY: Font = Font { height: RasterHeight::Size20, weight: FontWeight::Regular };
const SMALL: Font = Font { height: RasterHeight::Size16, weight: FontWeight::Regular };

/// Draws the picture of a map.
pub(crate) fn draw(map: &ColorMap, statistics: &Statistics) -> Canvas {
    let cells = cell_colors(map);
    let side = (1..=MAX_SIDE).find(|side| side * side >= cells.len()).unwrap_or(MAX_SIDE);
    // An even side keeps the curve free of diagonal steps.
    let side = side + side % 2;
    let scale = ((MAP_SIDE + side / 2) / side).max(1);
    let extent = side * scale;
    let height = extent.max(legend_height(statistics));
    let width = MARGIN * 2 + extent + GAP + LEGEND;
    let mut canvas = Canvas::new(width, HEADER + height + MARGIN);
    header(&mut canvas, width, map);
    let side = i32::try_from(side).unwrap_or(i32::MAX);
    for (color, (x, y)) in cells.into_iter().zip(curve::cells(side, side)) {
        let place = |at: i32| usize::try_from(at).unwrap_or(0) * scale;
        canvas.fill(MARGIN + place(x), HEADER + place(y), scale, scale, color);
    }
    legend(&mut canvas, MARGIN + extent + GAP, HEADER + height, statistics);
    canvas
}

/// The RGB value of each cell: that of its frame, or the mean of several frames.
fn cell_colors(map: &ColorMap) -> Vec<Rgb> {
    let per_cell = map.len().div_ceil(MAX_SIDE * MAX_SIDE).max(1);
    let shades: Vec<Rgb> = map.iter().map(|(_, _, frame)| palette::shade(&frame)).collect();
    shades.chunks(per_cell).map(mean).collect()
}

fn mean(colors: &[Rgb]) -> Rgb {
    let count = colors.len().max(1);
    [0, 1, 2].map(|channel| {
        let sum: usize = colors.iter().map(|c| usize::from(c[channel])).sum();
        u8::try_from(sum / count).unwrap_or(u8::MAX)
    })
}

/// Draws the guest's kernel and size above the map.
fn header(canvas: &mut Canvas, width: usize, map: &ColorMap) {
    let kernel = map.kernel();
    let title = match (kernel.os.as_str(), kernel.release.as_str()) {
        ("", "") => "Unknown kernel".to_owned(),
        ("linux", release) => format!("Linux {release}"),
        (os, release) => format!("{os} {release}"),
    };
    canvas.text(MARGIN, 36, TITLE, BRIGHT, &printable(&title));
    let ram = map.layout();
    let frames = thousands(u64::from(ram.frames()));
    let size = format!("{} of RAM, {frames} frames", size(ram.bytes()));
    canvas.text_to(width - MARGIN, 46, BODY, TEXT, &size);
}

/// Rows of the legend: families, and their colors that occur in the map.
fn legend_rows(statistics: &Statistics) -> Vec<(&'static str, Vec<ColorFigures>)> {
    let figures = |color| statistics.colors.iter().find(|f| f.color == color).copied();
    FAMILIES
        .iter()
        .map(|(name, colors)| (*name, colors.iter().copied().filter_map(figures).collect()))
        .filter(|(_, colors): &(_, Vec<_>)| !colors.is_empty())
        .collect()
}

fn legend_height(statistics: &Statistics) -> usize {
    let rows = legend_rows(statistics);
    let lines: usize = rows.iter().map(|(_, colors)| colors.len() + 1).sum();
    BAR + lines * LINE + rows.len() * FAMILY_GAP + CAPTION.len() * CAPTION_LINE
}

/// Draws the legend with its left edge at `x`: a bar of shares, a line per color, and an
/// explanation that ends at `bottom`.
fn legend(canvas: &mut Canvas, x: usize, bottom: usize, statistics: &Statistics) {
    let rows = legend_rows(statistics);
    let right = x + LEGEND;
    bar(canvas, x, HEADER, rows.iter().flat_map(|(_, colors)| colors), statistics.frames);
    let mut y = HEADER + BAR;
    for (family, colors) in &rows {
        y += FAMILY_GAP;
        canvas.text(x, y + 4, HEAD, FAINT, &family.to_uppercase());
        let share: f64 = colors.iter().map(|f| f.share).sum();
        canvas.text_to(right, y + 4, HEAD, FAINT, &percent(share));
        y += LINE;
        for figures in colors {
            canvas.fill(x, y + 4, SWATCH, SWATCH, palette::rgb(figures.color));
            canvas.text(x + SWATCH + 12, y + 2, BODY, TEXT, figures.color.name());
            canvas.text_to(
                right - 96,
                y + 2,
                BODY,
                FAINT,
                &format!("{:.1} MiB", mib(figures.frames)),
            );
            canvas.text_to(right, y + 2, BODY, BRIGHT, &percent(figures.share));
            y += LINE;
        }
    }
    let mut y = bottom - CAPTION.len() * CAPTION_LINE;
    for line in CAPTION {
        canvas.text(x, y, SMALL, FAINT, line);
        y += CAPTION_LINE;
    }
}

/// Draws the colors side by side, each as wide as its share.
fn bar<'a>(
    canvas: &mut Canvas,
    x: usize,
    y: usize,
    colors: impl Iterator<Item = &'a ColorFigures>,
    all: u32,
) {
    let place = |frames: u32| {
        usize::try_from(u64::from(frames) * LEGEND as u64 / u64::from(all.max(1))).unwrap_or(LEGEND)
    };
    let mut before = 0u32;
    for figures in colors {
        let after = before + figures.frames;
        let (start, end) = (place(before), place(after));
        canvas.fill(x + start, y, end - start, 16, palette::rgb(figures.color));
        before = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_output::test_map;

    #[test]
    fn every_frame_is_drawn() {
        let map = test_map::small();
        let colors = cell_colors(&map);
        assert_eq!(colors.len(), 40);
        assert_eq!(colors[1], palette::rgb(kaleidoscope_core::color::Color::Free));
        let canvas = draw(&map, &Statistics::of(&map));
        let mut png = Vec::new();
        canvas.write_png(&mut png).unwrap();
        assert!(png.len() > 1000);
    }

    #[test]
    fn the_mean_of_one_is_itself() {
        assert_eq!(mean(&[[1, 2, 3]]), [1, 2, 3]);
        assert_eq!(mean(&[[0, 0, 255], [255, 0, 255]]), [127, 0, 255]);
    }
}
