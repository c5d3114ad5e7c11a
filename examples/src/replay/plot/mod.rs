//! The replays as a picture: faults against waste, and clones' memory over time.

mod axes;
mod footprint;
mod labels;
mod scatter;

use super::ratios::Comparison;
use super::runs::Results;
use super::traces::NamedTrace;
use crate::chart_style::{FAINT, FONT, GRID, SHADE, TEXT, color};
use crate::failure::Failure;
use crate::outfile::Output;
use plotters::coord::Shift;
use plotters::prelude::*;

/// Size of the picture and height of its upper part, in pixels.
const SIZE: (u32, u32) = (1120, 1180);
const UPPER: u32 = 700;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawResult<'a> =
    Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Draws the comparison, and the memory of the first trace's clones. `judged` are the results of
/// the chosen policies, in order.
pub(super) fn write(
    output: Output,
    comparison: &Comparison,
    traces: &[NamedTrace],
    judged: &[&Results],
) -> Result<(), Failure> {
    let text = render(comparison, traces, judged)
        .map_err(|e| Failure::at(output.path(), format_args!("cannot draw it: {e}")))?;
    output.write(|out| out.write_all(text.as_bytes()))
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
) -> DrawResult<'a> {
    area.fill(&WHITE)?;
    let (upper, lower) = area.split_vertically(UPPER);
    scatter::draw(&upper, comparison, traces.len())?;
    if let Some(trace) = traces.first() {
        footprint::draw(&lower, trace, judged)?;
    }
    area.present()
}

/// A chart's title, and a line of explanation below it.
fn title<'a>(area: &Area<'a>, title: &str, below: &str) -> DrawResult<'a> {
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
