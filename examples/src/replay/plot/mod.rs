//! The replays as a picture: what each policy pays for its faults, and how clones grow.

mod axes;
mod footprint;
mod labels;
mod scatter;

use super::ratios::Comparison;
use super::runs::Results;
use super::traces::NamedTrace;
use crate::failure::Failure;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

/// Size in pixels, and of the upper half.
const SIZE: (u32, u32) = (1120, 1180);
const UPPER: u32 = 700;

const FONT: &str = "Helvetica, Arial, sans-serif";
const TEXT: RGBColor = RGBColor(0x26, 0x2b, 0x33);
const FAINT: RGBColor = RGBColor(0x76, 0x7e, 0x8c);
const GRID: RGBColor = RGBColor(0xe4, 0xe7, 0xec);
const SHADE: RGBColor = RGBColor(0xf1, 0xf3, 0xf6);

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

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Draws the comparison, and the first trace's clones under the policies of `judged`, which are the chosen ones in order.
pub(super) fn write(
    path: &Path,
    comparison: &Comparison,
    traces: &[NamedTrace],
    judged: &[&Results],
) -> Result<(), Failure> {
    let failure =
        |e: &dyn std::fmt::Display| Failure::at(path, format_args!("cannot be drawn: {e}"));
    let text = render(comparison, traces, judged).map_err(|e| failure(&e))?;
    std::fs::write(path, text).map_err(|e| failure(&e))
}

fn render(
    comparison: &Comparison,
    traces: &[NamedTrace],
    judged: &[&Results],
) -> Result<String, Box<dyn std::error::Error>> {
    let mut text = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area, comparison, traces, judged).map_err(|e| e.to_string())
    };
    drawn?;
    Ok(text)
}

fn draw<'a>(
    area: &Area<'a>,
    comparison: &Comparison,
    traces: &[NamedTrace],
    judged: &[&Results],
) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let (upper, lower) = area.split_vertically(UPPER);
    scatter::draw(&upper, comparison, traces.len())?;
    if let Some(trace) = traces.first() {
        footprint::draw(&lower, trace, judged)?;
    }
    area.present()
}

/// The color of a chosen policy, by its place.
fn color(place: usize) -> RGBColor {
    PALETTE.get(place % PALETTE.len()).copied().unwrap_or(TEXT)
}

/// A chart's title, and a line of explanation below it.
fn title<'a>(area: &Area<'a>, title: &str, below: &str) -> Drawn<'a> {
    let style = |size: u32, color: RGBColor| (FONT, size).into_font().color(&color);
    area.draw(&Text::new(title.to_owned(), (24, 18), style(28, TEXT)))?;
    area.draw(&Text::new(below.to_owned(), (24, 46), style(17, FAINT)))
}

#[cfg(test)]
mod tests {
    use super::super::policies::{FRONTIER, PolicyChoice};
    use super::*;
    use kaleidoscope_core::addr::FrameIndex;
    use kaleidoscope_core::memory::MemoryLayout;
    use kaleidoscope_core::prefetch::Access;
    use kaleidoscope_core::replay::{Metrics, Sample, Touch, Trace};

    #[test]
    fn pictures_name_every_policy_and_are_always_the_same() {
        let layout = MemoryLayout::contiguous(0x10_0000).unwrap();
        let touch = |n: u32| Touch {
            at_us: u64::from(n) * 100,
            frame: FrameIndex(n),
            access: Access::Read,
            vcpu: 0,
        };
        let trace = Trace::new((0..200).map(touch), &layout);
        let traces = [NamedTrace { name: "<scan>".into(), trace }];
        let results = |policy, faults: u32, wasted| {
            let sample =
                |n: u32| Sample { at_us: u64::from(n * faults), touched: n, resident: n + wasted };
            let samples = (0..200).map(sample).collect();
            let metrics = Metrics { faults, prefetched: wasted, samples, ..Metrics::default() };
            Results { policy, traces: vec![metrics] }
        };
        let mut all = vec![
            results(PolicyChoice::Demand, 1000, 0),
            results(PolicyChoice::Paper, 90, 350),
            results(PolicyChoice::PaperPivot, 90, 350),
            results(PolicyChoice::Oracle, 1, 0),
        ];
        let choices: Vec<_> = all.iter().map(|r| r.policy.clone()).collect();
        all.extend(FRONTIER.into_iter().zip(1..).map(|(p, n)| results(p, 1600 >> n, 100 * n)));
        let comparison = Comparison::new(&all, &choices);
        let judged: Vec<_> = all[..4].iter().collect();
        let text = render(&comparison, &traces, &judged).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        for name in ["demand", "paper", "paper-pivot", "oracle"] {
            assert!(text.matches(name).count() >= 2, "{name} in both charts");
        }
        assert!(text.contains("&lt;scan&gt;") && !text.contains("NaN") && !text.contains("inf"));
        assert_eq!(render(&comparison, &traces, &judged).unwrap(), text);
    }
}
