//! The report: one page that needs nothing but the picture beside it.

use super::chart::{Chart, Curve, SMALL, WIDE, draw};
use super::results::{Results, Sample, Way, mib};
use std::fmt::Write;

/// What is shown.
pub(super) struct Page<'a> {
    pub(super) results: &'a Results,
    /// The file of the color map's picture.
    pub(super) picture: Option<&'a str>,
}

const STYLE: &str = "body{font:16px/1.5 Helvetica,Arial,sans-serif;color:#262b33;max-width:1080px;margin:40px auto;padding:0 20px}\
h1{font-size:28px}h2{font-size:20px;margin-top:40px}table{border-collapse:collapse;font-size:14px}\
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid #e4e7ec}td:first-child,th:first-child{text-align:left}\
img{max-width:100%;border-radius:6px}.dot{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:8px}\
p.note{color:#767e8c}.charts{display:flex;flex-wrap:wrap;gap:16px}";

/// Text as HTML shows it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Rounds a millisecond between one sample and the next.
fn throughput(way: &Way) -> Vec<(f64, f64)> {
    let pairs = way.samples.windows(2).filter_map(|pair| match pair {
        [a, b] if b.at_us > a.at_us => {
            let done = super::results::number(b.rounds.saturating_sub(a.rounds));
            let (start, end) = (a.at_us / 1e3, b.at_us / 1e3);
            Some((end, done / (end - start)))
        }
        _ => None,
    });
    pairs.collect()
}

impl Page<'_> {
    /// The page.
    pub(super) fn render(&self) -> Result<String, String> {
        let results = self.results;
        let mut out = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Kaleidoscope</title><style>{STYLE}</style>\
             <h1>Clones of a running machine</h1><p>{}, {} clones at once.",
            escaped(&results.guest),
            results.clones
        );
        if let Some(pause) = results.pause_us {
            let _ = write!(out, " The parent stood still for {:.2} ms, and ran on.", pause / 1e3);
        }
        out.push_str("</p>");
        self.table(&mut out);
        self.curves(&mut out)?;
        self.colors(&mut out);
        if let Some(picture) = self.picture {
            let _ = write!(
                out,
                "<h2>What every page is</h2><p class=note>Found from outside, by page tables alone.</p>\
                 <img src=\"{}\" alt=\"color map\">",
                escaped(picture)
            );
        }
        out.push_str("</html>\n");
        Ok(out)
    }

    fn dot(place: usize) -> String {
        let color = crate::chart_style::color(place);
        let color = (color.0, color.1, color.2);
        format!("<span class=dot style=\"background:rgb{color:?}\"></span>")
    }

    fn table(&self, out: &mut String) {
        out.push_str(
            "<table><tr><th>way<th>start, us<th>done, ms<th>faults<th>late<th>fetched ahead<th>waited, ms\
             <th>longest, us<th>moved, MiB<th>memory of all, MiB</tr>",
        );
        for (place, way) in self.results.ways.iter().enumerate() {
            let _ = write!(
                out,
                "<tr><td>{}{}<td>{:.0}<td>{:.1}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.1}<td>{}<td>{:.1}<td>{:.1}</tr>",
                Self::dot(place),
                escaped(&way.name),
                way.start_us,
                way.took_us / 1e3,
                way.faults,
                way.late,
                way.prefetched_frames,
                way.stalled_us / 1e3,
                way.longest_stall_us.map_or_else(String::new, |us| format!("{us:.0}")),
                mib(way.moved_bytes),
                mib(way.memory_bytes)
            );
        }
        out.push_str("</table>");
    }

    fn curves(&self, out: &mut String) -> Result<(), String> {
        if self.results.ways.iter().all(|way| way.samples.len() < 3) {
            return Ok(());
        }
        let curves = |points: &dyn Fn(&Way) -> Vec<(f64, f64)>| -> Vec<Curve> {
            let ways = self.results.ways.iter().enumerate();
            ways.map(|(place, way)| Curve { place, points: points(way) }).collect()
        };
        let end = self.results.ways.iter().map(|way| way.took_us / 1e3).fold(0.0, f64::max);
        let wide = |unit| Chart { size: WIDE, end, unit };
        let work = draw(&curves(&throughput), &wide("rounds of work a ms"))?;
        let waited =
            |way: &Way| way.samples.iter().map(|s| (s.at_us / 1e3, s.stalled_us / 1e3)).collect();
        let waited = draw(&curves(&waited), &wide("ms waited so far, all vCPUs"))?;
        let _ = write!(
            out,
            "<h2>How clones warm up</h2><p class=note>Work done over time by all clones of a way, in the colors of the table.</p>{work}\
             <h2>How long they wait</h2>{waited}"
        );
        self.curves_by_color(out)
    }

    /// A small chart for each way whose clones wait: for what.
    fn curves_by_color(&self, out: &mut String) -> Result<(), String> {
        let last = |way: &Way| way.samples.last().map(|sample| sample.stalled_us_by_color.clone());
        let ends: Vec<_> = self.results.ways.iter().filter_map(last).collect();
        let mut colors: Vec<&str> = ends.iter().flat_map(|end| end.keys().copied()).collect();
        colors.sort_unstable();
        colors.dedup();
        if colors.is_empty() {
            return Ok(());
        }
        out.push_str("<h2>What for</h2><p class=note>");
        for (place, color) in colors.iter().enumerate() {
            let _ = write!(out, "{}{} &nbsp; ", Self::dot(place), escaped(color));
        }
        out.push_str("</p><div class=charts>");
        for way in &self.results.ways {
            let waits = way.samples.last().is_some_and(|s| !s.stalled_us_by_color.is_empty());
            if !waits || way.samples.len() < 3 {
                continue;
            }
            let of = |color: &str| -> Vec<(f64, f64)> {
                let waited = |sample: &Sample| sample.stalled_us_by_color.get(color).copied();
                way.samples
                    .iter()
                    .map(|s| (s.at_us / 1e3, waited(s).unwrap_or(0.0) / 1e3))
                    .collect()
            };
            let curves: Vec<Curve> = colors
                .iter()
                .enumerate()
                .map(|(place, color)| Curve { place, points: of(color) })
                .collect();
            let chart = Chart { size: SMALL, end: way.took_us / 1e3, unit: "ms waited so far" };
            let drawn = draw(&curves, &chart)?;
            let _ = write!(out, "<div><b>{}</b><br>{drawn}</div>", escaped(&way.name));
        }
        out.push_str("</div>");
        Ok(())
    }

    fn colors(&self, out: &mut String) {
        if self.results.ways.iter().all(|way| way.faults_by_color.is_empty()) {
            return;
        }
        out.push_str(
            "<h2>What they wait for</h2><p class=note>Faults of all clones, by color.</p><table>",
        );
        for (place, way) in self.results.ways.iter().enumerate() {
            let faults: Vec<String> = way
                .faults_by_color
                .iter()
                .map(|(color, faults)| format!("{} {faults}", escaped(color)))
                .collect();
            let _ = write!(
                out,
                "<tr><td>{}{}<td style=\"text-align:left\">{}</tr>",
                Self::dot(place),
                escaped(&way.name),
                faults.join(", ")
            );
        }
        out.push_str("</table>");
    }
}
