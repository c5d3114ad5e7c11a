//! The chart of faults against waste, with every policy and the frontier of blind prefetch.

use super::labels::Labels;
use super::{Area, DrawResult, FAINT, FONT, GRID, SHADE, TEXT, axes, color, title};
use crate::map_output::statistics::counted;
use crate::replay::policies::BASELINE;
use crate::replay::ratios::{Comparison, Mean};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

/// Points that are beyond the blind frontier by more than this factor are drawn at the edge, with
/// their value.
const BEYOND: f64 = 12.0;

/// Distance of the edge from the other points, as a factor.
const EDGE: f64 = 1.8;

/// Margin around the points, as a factor.
const ROOM: f64 = 1.35;

/// An axis: its range, and the lowest and highest position of points. Points beyond are pinned to
/// these.
struct Axis {
    range: Range<f64>,
    lowest: f64,
    highest: f64,
}

impl Axis {
    fn new(blind: &[f64], all: &[f64]) -> Self {
        let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        let shown = least(blind) / BEYOND..most(blind) * BEYOND;
        let near: Vec<f64> = all.iter().copied().filter(|value| shown.contains(value)).collect();
        let edge = |is_beyond: bool| if is_beyond { EDGE } else { 1.0 };
        let lowest = least(&near) / edge(least(all) < shown.start);
        let highest = most(&near) * edge(most(all) > shown.end);
        Self { range: lowest / ROOM..highest * ROOM, lowest, highest }
    }

    fn pin(&self, value: f64) -> f64 {
        value.clamp(self.lowest, self.highest)
    }
}

/// Draws policies by their faults and their waste, both relative to the baseline, on logarithmic
/// axes.
pub(super) fn draw<'a>(area: &Area<'a>, comparison: &Comparison, traces: usize) -> DrawResult<'a> {
    let below = format!(
        "relative to {BASELINE}, geometric means over {}; left and down is better",
        counted(traces, "trace")
    );
    title(area, "Faults against waste", &below)?;
    let axis = |figure: fn(&Mean) -> f64| {
        let blind: Vec<_> = comparison.blind.iter().map(figure).collect();
        let chosen = comparison.chosen.iter().map(figure);
        Axis::new(&blind, &blind.iter().copied().chain(chosen).collect::<Vec<_>>())
    };
    let (faults, waste) = (axis(|mean| mean.faults), axis(|mean| mean.waste));
    let ticks = (axes::logarithmic(&faults.range), axes::logarithmic(&waste.range));
    let mut chart = ChartBuilder::on(area)
        .margin_top(84)
        .margin_right(32)
        .margin_left(16)
        .margin_bottom(8)
        .x_label_area_size(52)
        .y_label_area_size(64)
        .build_cartesian_2d(
            faults.range.clone().log_scale().with_key_points(ticks.0),
            waste.range.clone().log_scale().with_key_points(ticks.1),
        )?;

    // Shade the area above and right of the frontier, which blind prefetch can reach.
    let line: Vec<_> = comparison.blind.iter().map(|m| (m.faults, m.waste)).collect();
    if let (Some(first), Some(last)) = (line.first(), line.last()) {
        let (right, top) = (faults.range.end, waste.range.end);
        let mut shade = line.clone();
        shade.extend([(last.0, top), (right, top), (right, first.1)]);
        chart.draw_series([Polygon::new(shade, SHADE.filled())])?;
    }
    let text = |size: u32, color: RGBColor| (FONT, size).into_font().color(&color);
    chart
        .configure_mesh()
        .x_desc("faults")
        .y_desc("wasted frames")
        .axis_desc_style(text(18, TEXT))
        .label_style(text(16, FAINT))
        .x_label_formatter(&|tick| axes::format(*tick))
        .y_label_formatter(&|tick| axes::format(*tick))
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .draw()?;

    chart.draw_series(LineSeries::new(line.iter().copied(), FAINT.stroke_width(2)))?;
    chart.draw_series(line.iter().map(|point| Circle::new(*point, 4, FAINT.filled())))?;
    let at = |mean: &Mean| (faults.pin(mean.faults), waste.pin(mean.waste));
    // Chosen policies of the frontier are drawn already.
    let chosen = comparison.chosen.iter().enumerate();
    let chosen: Vec<_> = chosen.filter(|(_, mean)| !is_on_line(mean, comparison)).collect();
    chart.draw_series(
        chosen.iter().map(|(place, mean)| Circle::new(at(mean), 7, color(*place).filled())),
    )?;

    let pixels = |point: &(f64, f64)| chart.backend_coord(point);
    let (width, height) = area.dim_in_pixel();
    let size = (i32::try_from(width).unwrap_or(0), i32::try_from(height).unwrap_or(0));
    let mut labels = Labels::within((90, 84), (size.0 - 20, size.1 - 62));
    for (_, mean) in &chosen {
        labels.avoid(pixels(&at(mean)), 7);
    }
    let line: Vec<_> = line.iter().map(pixels).collect();
    for point in &line {
        labels.avoid(*point, 4);
    }
    labels.avoid_line(&line);
    let corner = (size.0 - 44, 96);
    let style = text(16, FAINT).pos(Pos::new(HPos::Right, VPos::Top));
    area.draw(&Text::new("no better than blind prefetch", corner, style))?;
    labels.avoid((size.0 - 144, 104), 12);
    for (place, mean) in &chosen {
        let text = label(mean, &faults, &waste);
        labels.draw(area, pixels(&at(mean)), &text, 20, color(*place))?;
    }
    for (mean, point) in comparison.blind.iter().zip(&line) {
        let text = mean.policy.to_string().replace("blind-aligned-", "blind ");
        labels.draw(area, *point, &text, 15, FAINT)?;
    }
    Ok(())
}

fn is_on_line(mean: &Mean, comparison: &Comparison) -> bool {
    comparison.blind.iter().any(|blind| blind.policy == mean.policy)
}

/// A policy's name, with figures that the position of its point does not show.
fn label(mean: &Mean, faults: &Axis, waste: &Axis) -> String {
    let mut notes = Vec::new();
    if mean.never_faults {
        notes.push("no faults".to_owned());
    } else if faults.pin(mean.faults) != mean.faults {
        notes.push(format!("{:.1$}× faults", mean.faults, digits(mean.faults)));
    }
    if mean.wastes_nothing {
        notes.push("no waste".to_owned());
    } else if waste.pin(mean.waste) != mean.waste {
        notes.push(format!("{:.1$}× waste", mean.waste, digits(mean.waste)));
    }
    if notes.is_empty() {
        mean.policy.to_string()
    } else {
        format!("{} ({})", mean.policy, notes.join(", "))
    }
}

/// Number of decimals for a ratio.
fn digits(ratio: f64) -> usize {
    if ratio < 0.01 { 4 } else { 2 }
}
