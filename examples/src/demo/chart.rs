//! Curves over time.

use crate::chart_style::{FAINT, FONT, GRID, TEXT, color};
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 420);
/// A curve: points of time in ms and a value.
pub(super) struct Curve {
    pub(super) place: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// Draws curves as SVG; `end` is where the time ends. What lies beyond is cut.
pub(super) fn draw(curves: &[Curve], end: f64, unit: &str) -> Result<String, String> {
    let shown = |curve: &Curve| -> Vec<(f64, f64)> {
        curve.points.iter().copied().filter(|(at, _)| *at <= end).collect()
    };
    let lines: Vec<(usize, Vec<_>)> = curves.iter().map(|c| (c.place, shown(c))).collect();
    let values = lines.iter().flat_map(|(_, line)| line).map(|(_, value)| *value);
    let most = values.fold(1e-9, f64::max);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let drawn = (|| {
            let style = |size: u32, color: RGBColor| (FONT, size).into_font().color(&color);
            let mut chart = ChartBuilder::on(&area)
                .margin(12)
                .x_label_area_size(48)
                .y_label_area_size(72)
                .build_cartesian_2d(0.0..end.max(1e-3), 0.0..most * 1.06)?;
            chart
                .configure_mesh()
                .x_desc("ms since the clones were resumed")
                .y_desc(unit)
                .axis_desc_style(style(16, TEXT))
                .label_style(style(14, FAINT))
                .bold_line_style(GRID)
                .light_line_style(TRANSPARENT)
                .axis_style(FAINT)
                .draw()?;
            for (place, line) in lines {
                chart.draw_series(LineSeries::new(line, color(place).stroke_width(2)))?;
            }
            area.present()
        })();
        drawn.map_err(|error: DrawingAreaErrorKind<_>| error.to_string())?;
    }
    Ok(text)
}
