//! The picture of pages saved over frames hashed, with one curve for each strategy.

use super::strategies::StrategyResult;
use crate::chart_style::{FAINT, GRID, TEXT, color};
use crate::map_output::statistics::thousands;
use crate::picture::{Canvas, Font};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight};
use plotters::style::RGBColor;

/// Size, and margins around the curves (left, top, right, bottom), in pixels.
const SIZE: (usize, usize) = (1120, 720);
const MARGIN: [usize; 4] = [110, 96, 40, 80];

/// Grid lines along each side.
const GRID_LINES: u64 = 5;

/// Width of a curve in pixels.
const STROKE: usize = 3;

const TITLE: Font = Font { height: RasterHeight::Size20, weight: FontWeight::Bold };
const BODY: Font = Font { height: RasterHeight::Size16, weight: FontWeight::Regular };

/// Maps hashes and pages to pixels. The fields are the ends of the axes.
struct Scale {
    hashes: u64,
    pages: u64,
}

impl Scale {
    fn x(&self, hashes: u64) -> usize {
        let width = SIZE.0.saturating_sub(MARGIN[0] + MARGIN[2]);
        MARGIN[0].saturating_add(part(hashes, self.hashes, width))
    }

    fn y(&self, pages: u64) -> usize {
        let height = SIZE.1.saturating_sub(MARGIN[1] + MARGIN[3]);
        (SIZE.1.saturating_sub(MARGIN[3])).saturating_sub(part(pages, self.pages, height))
    }
}

/// `length * of / all`, in pixels.
fn part(of: u64, all: u64, length: usize) -> usize {
    let length = u64::try_from(length).unwrap_or(0);
    usize::try_from(of.min(all).saturating_mul(length) / all.max(1)).unwrap_or(0)
}

fn rgb(color: RGBColor) -> [u8; 3] {
    [color.0, color.1, color.2]
}

/// Draws the strategies' curves, and the bound.
pub(super) fn draw(results: &[StrategyResult]) -> Canvas {
    let mut canvas = Canvas::new(SIZE.0, SIZE.1);
    canvas.fill(0, 0, SIZE.0, SIZE.1, [255; 3]);
    canvas.text(24, 20, TITLE, rgb(TEXT), "Pages saved against frames hashed");
    let below = "net, without zero and free frames; bound: an oracle that knows every page";
    canvas.text(24, 48, BODY, rgb(FAINT), below);
    let Some(blind) = results.first() else { return canvas };
    let total = blind.trial.total();
    // Other strategies may save more than blind, if pages that blind shares diverge.
    let most = results.iter().map(|result| result.trial.total().net()).max().unwrap_or(0);
    let scale = Scale { hashes: total.hashed.max(1), pages: most.max(1) };
    axes(&mut canvas, &scale);
    let steps = 200;
    let bound = (0..=steps).map(|step| {
        let hashes = scale.hashes.saturating_mul(step) / steps;
        (hashes, blind.trial.sharing.bound(hashes).min(most))
    });
    line(&mut canvas, &scale, bound, 1, rgb(FAINT));
    let legend = SIZE.0.saturating_sub(300);
    let mut row = SIZE.1.saturating_sub(MARGIN[3] + 20 * (results.len() + 2));
    canvas.text(legend, row, BODY, rgb(FAINT), "bound");
    for (place, result) in results.iter().enumerate() {
        let color = rgb(color(place));
        let points = result.trial.curve.iter().map(|point| (point.hashed, point.net));
        line(&mut canvas, &scale, std::iter::once((0, 0)).chain(points), STROKE, color);
        let total = result.trial.total();
        dot(&mut canvas, scale.x(total.hashed), scale.y(total.net()), 9, color);
        row = row.saturating_add(20);
        canvas.text(legend, row, BODY, color, &result.strategy.to_string());
    }
    canvas
}

fn axes(canvas: &mut Canvas, scale: &Scale) {
    let (left, right) = (scale.x(0), scale.x(scale.hashes));
    let (bottom, top) = (scale.y(0), scale.y(scale.pages));
    for step in 0..=GRID_LINES {
        let value = |all: u64| all.saturating_mul(step) / GRID_LINES;
        let y = scale.y(value(scale.pages));
        canvas.fill(left, y, right.saturating_sub(left), 1, rgb(GRID));
        canvas.text_to(
            left.saturating_sub(8),
            y.saturating_sub(8),
            BODY,
            rgb(FAINT),
            &thousands(value(scale.pages)),
        );
        let x = scale.x(value(scale.hashes));
        canvas.fill(x, top, 1, bottom.saturating_sub(top), rgb(GRID));
        let label = thousands(value(scale.hashes));
        canvas.text_to(
            x.saturating_add(BODY.width(&label) / 2),
            bottom + 8,
            BODY,
            rgb(FAINT),
            &label,
        );
    }
    canvas.text(left, bottom + 40, BODY, rgb(TEXT), "frames hashed");
    canvas.text(24, 74, BODY, rgb(TEXT), "pages saved");
}

/// Connects points by straight lines.
fn line(
    canvas: &mut Canvas,
    scale: &Scale,
    points: impl Iterator<Item = (u64, u64)>,
    width: usize,
    color: [u8; 3],
) {
    let mut last: Option<(usize, usize)> = None;
    for (hashes, pages) in points {
        let (x, y) = (scale.x(hashes), scale.y(pages));
        let (from_x, from_y) = last.replace((x, y)).unwrap_or((x, y));
        let steps = x.abs_diff(from_x).max(y.abs_diff(from_y)).max(1);
        for step in 0..=steps {
            let between = |a: usize, b: usize| {
                let way = b.abs_diff(a) * step / steps;
                if b >= a { a + way } else { a - way }
            };
            dot(canvas, between(from_x, x), between(from_y, y), width, color);
        }
    }
}

fn dot(canvas: &mut Canvas, x: usize, y: usize, width: usize, color: [u8; 3]) {
    canvas.fill(x.saturating_sub(width / 2), y.saturating_sub(width / 2), width, width, color);
}
