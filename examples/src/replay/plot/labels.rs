//! Places labels so that they overlap neither each other nor the chart's points and lines.

use super::{Area, DrawResult, FAINT, FONT};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A position in pixels.
type Point = (i32, i32);

/// A rectangle, from its upper left to its lower right corner.
#[derive(Clone, Copy, Debug)]
struct Rectangle {
    from: Point,
    to: Point,
}

impl Rectangle {
    fn around((x, y): Point, radius: i32) -> Self {
        Self { from: (x - radius, y - radius), to: (x + radius, y + radius) }
    }

    fn meets(&self, other: &Self) -> bool {
        self.from.0 < other.to.0
            && other.from.0 < self.to.0
            && self.from.1 < other.to.1
            && other.from.1 < self.to.1
    }

    fn holds(&self, other: &Self) -> bool {
        self.from.0 <= other.from.0
            && self.from.1 <= other.from.1
            && other.to.0 <= self.to.0
            && other.to.1 <= self.to.1
    }
}

/// Places labels one after the other, each as near to its point as possible.
#[derive(Debug)]
pub(super) struct Labels {
    bounds: Rectangle,
    taken: Vec<Rectangle>,
}

/// Possible sides of a label, the best first.
const SIDES: [(i32, i32); 8] =
    [(1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)];

/// Possible distances of a label from its point, in pixels.
const DISTANCES: [i32; 6] = [12, 18, 30, 46, 66, 90];

impl Labels {
    /// Labels within the rectangle between two corners.
    pub(super) fn within(from: Point, to: Point) -> Self {
        Self { bounds: Rectangle { from, to }, taken: Vec::new() }
    }

    /// Keeps labels off a point.
    pub(super) fn avoid(&mut self, point: Point, radius: i32) {
        self.taken.push(Rectangle::around(point, radius));
    }

    /// Keeps labels off the line through these points.
    pub(super) fn avoid_line(&mut self, points: &[Point]) {
        for pair in points.windows(2) {
            let [from, to] = pair else { continue };
            let steps = ((to.0 - from.0).abs().max((to.1 - from.1).abs()) / 6).max(1);
            for step in 0..=steps {
                let part = |a: i32, b: i32| a + (b - a) * step / steps;
                self.avoid((part(from.0, to.0), part(from.1, to.1)), 3);
            }
        }
    }

    /// Draws a label near a point, with a line to the point if the label is not next to it.
    pub(super) fn draw<'a>(
        &mut self,
        area: &Area<'a>,
        point: Point,
        text: &str,
        size: u32,
        color: RGBColor,
    ) -> DrawResult<'a> {
        let (anchor, pos, block, distance) = self.place(point, text, size);
        if distance > 20 {
            area.draw(&PathElement::new(vec![point, anchor], FAINT.stroke_width(1)))?;
        }
        self.taken.push(block);
        let style = (FONT, size).into_font().color(&color).pos(pos);
        area.draw(&Text::new(text.to_owned(), anchor, style))
    }

    /// Finds a place for a label: its anchor, the anchor's position in the label, the rectangle
    /// that it covers, and its distance from the point.
    fn place(&self, point: Point, text: &str, size: u32) -> (Point, Pos, Rectangle, i32) {
        let places = DISTANCES.into_iter().flat_map(|distance| {
            SIDES.into_iter().map(move |side| {
                let anchor = (point.0 + side.0 * distance, point.1 + side.1 * distance);
                let (pos, block) = extent(anchor, side, text, size);
                (anchor, pos, block, distance)
            })
        });
        let free = |block: &Rectangle| {
            self.bounds.holds(block) && !self.taken.iter().any(|taken| taken.meets(block))
        };
        places.clone().find(|(_, _, block, _)| free(block)).unwrap_or_else(|| {
            // No free place: a label that covers something is better than none.
            let inside = places.clone().find(|(_, _, block, _)| self.bounds.holds(block));
            inside.unwrap_or_else(|| {
                let (pos, block) = extent(point, (1, 0), text, size);
                (point, pos, block, 0)
            })
        })
    }
}

/// The anchor's position in a label on a side of its point, and the rectangle that it covers.
fn extent(anchor: Point, side: (i32, i32), text: &str, size: u32) -> (Pos, Rectangle) {
    // The backend's letters are size / 1.24 pixels high. Letters of common sans-serif fonts are
    // 0.56 times as wide on average.
    let letters = i32::try_from(text.chars().count()).unwrap_or(i32::MAX / 100);
    let size = i32::try_from(size).unwrap_or(0);
    let (width, height) = (letters.saturating_mul(size) * 46 / 100, size * 86 / 100);
    let (h_pos, left) = match side.0 {
        1.. => (HPos::Left, anchor.0),
        0 => (HPos::Center, anchor.0 - width / 2),
        _ => (HPos::Right, anchor.0 - width),
    };
    let (v_pos, top) = match side.1 {
        1.. => (VPos::Top, anchor.1),
        0 => (VPos::Center, anchor.1 - height / 2),
        _ => (VPos::Bottom, anchor.1 - height),
    };
    (Pos::new(h_pos, v_pos), Rectangle { from: (left, top), to: (left + width, top + height) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_do_not_meet() {
        let mut labels = Labels::within((0, 0), (400, 300));
        let points: Vec<Point> = (0..12).map(|n| (200 + n % 3, 150 + n % 4)).collect();
        for point in &points {
            labels.avoid(*point, 5);
        }
        labels.avoid_line(&[(0, 0), (400, 300)]);
        let mut placed: Vec<Rectangle> = Vec::new();
        for point in &points {
            let (_, _, block, _) = labels.place(*point, "policy", 15);
            assert!(labels.bounds.holds(&block));
            assert!(!placed.iter().chain(&labels.taken).any(|other| other.meets(&block)));
            labels.taken.push(block);
            placed.push(block);
        }
    }
}
