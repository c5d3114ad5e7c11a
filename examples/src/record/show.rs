//! Recordings and translations as tables and JSON.

use crate::map_output::statistics::thousands;
use crate::map_output::table::{finish, percent, printable, table};
use comfy_table::CellAlignment::{Left, Right};
use kaleidoscope_core::color::Color;
use kaleidoscope_core::recording::{Match, Recording, Similarity, TranslatedRecording};
use serde::Serialize;
use std::cmp::Reverse;
use std::fmt::Write;
use std::path::Path;

/// What a recording holds.
#[derive(Debug, Serialize)]
pub(super) struct Summary<'a> {
    os: &'a str,
    release: &'a str,
    build_id: &'a str,
    /// The snapshot that it was made on, in hexadecimal.
    image: String,
    runs: u32,
    hashed_names: bool,
    entries: usize,
    colors: Vec<Count>,
    kinds: Vec<Count>,
    /// Entries by the share of runs that touched them, in ten steps.
    confidence: [u32; 10],
    regions: usize,
    top_regions: Vec<RegionRow<'a>>,
}

/// How many of something.
#[derive(Debug, Serialize)]
struct Count {
    name: &'static str,
    entries: u32,
}

#[derive(Debug, Serialize)]
struct RegionRow<'a> {
    kind: &'static str,
    name: &'a str,
    /// Frames that were touched.
    entries: u32,
    /// Frames that it had.
    frames: u32,
}

impl<'a> Summary<'a> {
    /// Counts a recording's entries, and lists the regions that have most.
    pub(super) fn of(recording: &'a Recording, top: usize) -> Self {
        let mut colors = [0u32; Color::ALL.len()];
        let mut of_region = vec![0u32; recording.regions().len()];
        let mut confidence = [0u32; 10];
        for entry in recording.entries() {
            colors[entry.color as usize] += 1;
            if let Some(count) = entry.key.region().and_then(|r| of_region.get_mut(r as usize)) {
                *count += 1;
            }
            // Step n holds shares above n / 10.
            let step = (u64::from(entry.runs) * 10).div_ceil(u64::from(recording.runs().max(1)));
            let step = usize::try_from(step).unwrap_or(10).clamp(1, 10) - 1;
            confidence[step] += 1;
        }
        let mut kinds: Vec<Count> = Vec::new();
        let mut rows: Vec<RegionRow<'_>> = Vec::new();
        for (region, entries) in recording.regions().iter().zip(of_region) {
            let name = region.kind.name();
            match kinds.iter_mut().find(|count| count.name == name) {
                Some(count) => count.entries += entries,
                None => kinds.push(Count { name, entries }),
            }
            rows.push(RegionRow { kind: name, name: &region.name, entries, frames: region.frames });
        }
        kinds.sort_by_key(|count| Reverse(count.entries));
        rows.sort_by_key(|row| Reverse(row.entries));
        rows.truncate(top);
        let counted = Color::ALL.into_iter().map(|c| (c, colors[c as usize]));
        let kernel = recording.kernel();
        Self {
            os: &kernel.os,
            release: &kernel.release,
            build_id: &kernel.build_id,
            image: recording.image().to_string(),
            runs: recording.runs(),
            hashed_names: recording.salt().is_some(),
            entries: recording.entries().len(),
            colors: counted
                .filter(|(_, entries)| *entries > 0)
                .map(|(color, entries)| Count { name: color.name(), entries })
                .collect(),
            kinds,
            confidence,
            regions: recording.regions().len(),
            top_regions: rows,
        }
    }
}

/// What a translation found.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    /// How like the image is to the one that was recorded.
    likeness: &'static str,
    found: u32,
    missing: u32,
    /// Frames with a confidence of at least a half.
    sure: usize,
    colors: Vec<FoundColor>,
    ways: Vec<Count>,
}

#[derive(Debug, Serialize)]
struct FoundColor {
    color: &'static str,
    found: u32,
    missing: u32,
}

impl Found {
    /// Counts what was found.
    pub(super) fn of(translation: &TranslatedRecording) -> Self {
        let counts = Color::ALL.into_iter().zip(translation.found.iter().zip(&translation.missing));
        let colors: Vec<FoundColor> = counts
            .filter(|(_, (found, missing))| **found + **missing > 0)
            .map(|(color, (found, missing))| FoundColor {
                color: color.name(),
                found: *found,
                missing: *missing,
            })
            .collect();
        let way = |how: Match| {
            let entries = translation.frames.iter().filter(|t| t.how == how).count();
            Count { name: how.name(), entries: u32::try_from(entries).unwrap_or(u32::MAX) }
        };
        Self {
            likeness: match translation.likeness {
                Similarity::Snapshot => "same-snapshot",
                Similarity::Kernel => "same-kernel",
                Similarity::Other => "other-kernel",
            },
            found: translation.found.iter().sum(),
            missing: translation.missing.iter().sum(),
            sure: translation.at_least(0.5).count(),
            colors,
            ways: Match::ALL.into_iter().map(way).filter(|count| count.entries > 0).collect(),
        }
    }
}

/// One JSON object, ending with a line feed.
pub(super) fn json(value: &impl Serialize) -> String {
    // Strings, numbers and lists always serialize.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// What was written, in one line.
pub(super) fn kept(recording: &Recording, path: &Path) -> String {
    let entries = recording.entries().len();
    let (runs, regions) = (recording.runs(), recording.regions().len());
    let size = std::fs::metadata(path).map_or(0, |m| m.len());
    format!(
        "{}: {}, {} frames of {} regions in {} bytes\n",
        path.display(),
        runs_of(runs),
        count(entries),
        count(regions),
        thousands(size)
    )
}

/// A recording as tables.
pub(super) fn summary_tables(summary: &Summary<'_>) -> String {
    let kernel = match (summary.os, summary.release) {
        ("", "") => "an unknown kernel".to_owned(),
        (os, release) => printable(format!("{os} {release}").trim()),
    };
    let mut out = format!(
        "{}, {} frames of {kernel}, image {}\n",
        runs_of(summary.runs),
        count(summary.entries),
        summary.image.get(..16).unwrap_or(&summary.image),
    );
    if summary.hashed_names {
        out.push_str("names of files and processes are hashed\n");
    }
    for (title, counts) in [("color", &summary.colors), ("kind", &summary.kinds)] {
        let mut rows = table([(title, Left), ("touched", Right)]);
        for Count { name, entries } in counts {
            rows.add_row(vec![(*name).to_owned(), thousands(u64::from(*entries))]);
        }
        let _ = write!(out, "\n{}", finish(&rows));
    }
    let mut rows = table([("touched in share of runs", Left), ("touched", Right)]);
    for (step, entries) in summary.confidence.iter().enumerate().rev().filter(|(_, n)| **n > 0) {
        let share = format!("over {} % to {} %", step * 10, step * 10 + 10);
        rows.add_row(vec![share, thousands(u64::from(*entries))]);
    }
    let _ = write!(out, "\n{}", finish(&rows));
    let mut rows = table([("touched", Right), ("of", Right), ("kind", Left), ("region", Left)]);
    for region in &summary.top_regions {
        rows.add_row(vec![
            thousands(u64::from(region.entries)),
            thousands(u64::from(region.frames)),
            region.kind.to_owned(),
            printable(region.name),
        ]);
    }
    let _ = write!(out, "\n{}", finish(&rows));
    let more = summary.regions.saturating_sub(summary.top_regions.len());
    if more > 0 {
        let _ = writeln!(out, "and {} more", count(more));
    }
    out
}

/// A translation as a table.
pub(super) fn found_table(found: &Found) -> String {
    let likeness = match found.likeness {
        "same-snapshot" => "the very snapshot that was recorded",
        "same-kernel" => "another snapshot with the same kernel",
        _ => "another kernel than the recorded one",
    };
    let mut out = format!("image: {likeness}\n\n");
    let mut rows =
        table([("color", Left), ("recorded", Right), ("found", Right), ("share", Right)]);
    let mut add = |name: &str, found: u32, missing: u32| {
        let recorded = found.saturating_add(missing);
        let share = f64::from(found) / f64::from(recorded.max(1));
        rows.add_row(vec![
            name.to_owned(),
            thousands(u64::from(recorded)),
            thousands(u64::from(found)),
            percent(share),
        ]);
    };
    for color in &found.colors {
        add(color.color, color.found, color.missing);
    }
    add("all", found.found, found.missing);
    out.push_str(&finish(&rows));
    let mut rows = table([("found by", Left), ("frames", Right)]);
    for Count { name, entries } in &found.ways {
        rows.add_row(vec![(*name).to_owned(), thousands(u64::from(*entries))]);
    }
    let _ = write!(out, "\n{}", finish(&rows));
    let _ = writeln!(out, "\n{} frames have a confidence of at least 0.5", count(found.sure));
    out
}

fn runs_of(runs: u32) -> String {
    if runs == 1 { "1 run".to_owned() } else { format!("{} runs", thousands(u64::from(runs))) }
}

fn count(n: usize) -> String {
    thousands(u64::try_from(n).unwrap_or(u64::MAX))
}
