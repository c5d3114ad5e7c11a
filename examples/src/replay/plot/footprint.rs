//! The chart of clones' memory over time, compared with the memory that the clone touched.

use super::labels::Labels;
use super::{Area, DrawResult, FAINT, FONT, GRID, SHADE, TEXT, color, title};
use crate::map_output::statistics::mib;
use crate::map_output::table::printable;
use crate::replay::runs::Results;
use crate::replay::traces::NamedTrace;
use kaleidoscope_core::replay::Sample;
use plotters::prelude::*;
use std::time::Duration;

/// Points of the shaded area.
const POINTS: usize = 512;

/// Draws the clones of the first trace under every policy.
pub(super) fn draw<'a>(area: &Area<'a>, trace: &NamedTrace, judged: &[&Results]) -> DrawResult<'a> {
    let heading = format!("Memory of a clone: {}", printable(&trace.name));
    let below = "memory of each policy's clone until its last touch; \
                 shaded: memory touched by a clone that never waits";
    title(area, &heading, below)?;
    let touched = touched(trace);
    let lines: Vec<Vec<_>> = judged
        .iter()
        .map(|results| results.traces.first().map_or(&[][..], |metrics| &metrics.samples))
        .map(|samples| samples.iter().map(point).collect())
        .collect();
    let all = || lines.iter().chain([&touched]).flatten();
    let end = all().map(|(seconds, _)| *seconds).fold(1e-6, f64::max);
    let most = all().map(|(_, size)| *size).fold(0.1, f64::max);
    // The x axis has room for labels at its end.
    let mut chart = ChartBuilder::on(area)
        .margin_top(80)
        .margin_right(32)
        .margin_left(16)
        .margin_bottom(8)
        .x_label_area_size(52)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end * 1.12, 0.0..most * 1.06)?;
    chart.draw_series(AreaSeries::new(touched.iter().copied(), 0.0, SHADE))?;
    let text = |size: u32, color: RGBColor| (FONT, size).into_font().color(&color);
    chart
        .configure_mesh()
        .x_desc("seconds since the clone was resumed")
        .y_desc("MiB")
        .axis_desc_style(text(18, TEXT))
        .label_style(text(16, FAINT))
        .x_labels(12)
        .y_labels(8)
        .x_label_formatter(&|tick| super::axes::format(*tick))
        .y_label_formatter(&|tick| super::axes::format(*tick))
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .draw()?;
    chart.draw_series(LineSeries::new(touched.iter().copied(), FAINT))?;
    for (place, line) in lines.iter().enumerate() {
        let color = color(place);
        chart.draw_series(LineSeries::new(line.iter().copied(), color.stroke_width(2)))?;
        chart.draw_series(line.last().map(|point| Circle::new(*point, 5, color.filled())))?;
    }

    let (width, height) = area.dim_in_pixel();
    let size = (i32::try_from(width).unwrap_or(0), i32::try_from(height).unwrap_or(0));
    let (left, top) = area.get_base_pixel();
    let mut labels = Labels::within((90, 84), (size.0 - 12, size.1 - 62));
    // `backend_coord` is relative to the picture, but labels are drawn relative to the area.
    let pixels = |point: &(f64, f64)| {
        let (x, y) = chart.backend_coord(point);
        (x - left, y - top)
    };
    for line in &lines {
        labels.avoid_line(&line.iter().map(pixels).collect::<Vec<_>>());
        if let Some(last) = line.last() {
            labels.avoid(pixels(last), 6);
        }
    }
    for ((place, line), results) in lines.iter().enumerate().zip(judged) {
        if let Some(last) = line.last() {
            let name = results.policy.to_string();
            labels.draw(area, pixels(last), &name, 18, color(place))?;
        }
    }
    Ok(())
}

/// A sample as (seconds, MiB).
fn point(sample: &Sample) -> (f64, f64) {
    (Duration::from_micros(sample.at_us).as_secs_f64(), mib(sample.resident))
}

/// The memory that the trace's clone touched over time, in about `POINTS` points (seconds, MiB).
fn touched(trace: &NamedTrace) -> Vec<(f64, f64)> {
    let touches = trace.trace.touches();
    let every = touches.len().div_ceil(POINTS).max(1);
    let ends = touches.len().checked_sub(1);
    let points = (1..).zip(touches).enumerate();
    let shown = points.filter(|(place, _)| place.is_multiple_of(every) || Some(*place) == ends);
    let point = |(_, (count, touch)): (usize, (u32, &kaleidoscope_core::replay::Touch))| {
        (Duration::from_micros(touch.at_us).as_secs_f64(), mib(count))
    };
    shown.map(point).collect()
}
