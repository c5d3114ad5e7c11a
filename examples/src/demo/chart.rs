//! Curves over time.

use crate::chart_style::{FAINT, FONT, GRID, TEXT, color};
use plotters::prelude::*;

/// Pixels of a chart that stands alone, and of one among several.
pub(super) const WIDE: (u32, u32) = (960, 420);
pub(super) const SMALL: (u32, u32) = (480, 280);

/// A curve: points of time in ms and a value.
pub(super) struct Curve {
    pub(super) place: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// What a chart shows.
pub(super) struct Chart<'a> {
    pub(super) size: (u32, u32),
    /// Where the time ends; what lies beyond is cut.
    pub(super) end: f64,
    /// What the values are.
    pub(super) unit: &'a str,
}

/// Draws curves as SVG.
pub(super) fn draw(curves: &[Curve], chart: &Chart<'_>) -> Result<String, String> {
    let Chart { size, end, unit } = *chart;
    let shown = |curve: &Curve| -> Vec<(f64, f64)> {
        curve.points.iter().copied().filter(|(at, _)| *at <= end).collect()
    };
    let lines: Vec<(usize, Vec<_>)> = curves.iter().map(|c| (c.place, shown(c))).collect();
    let values = lines.iter().flat_map(|(_, line)| line).map(|(_, value)| *value);
    let most = values.fold(1e-9, f64::max);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
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
