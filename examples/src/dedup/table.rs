//! The strategies as text tables.

use super::guests::Guest;
use super::ksm::{KsmResult, KsmResults};
use super::strategies::{StrategyResult, ratio};
use crate::map_output::statistics::thousands;
use crate::map_output::table::{finish, heading, percent, printable, table};
use comfy_table::CellAlignment::{Left, Right};
use kaleidoscope_core::color::{Color, PaperColor};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// The number of free frames of all guests.
pub(super) fn free(guests: &[Guest]) -> u64 {
    let colors = guests.iter().flat_map(|guest| guest.locality.map().colors());
    let free = colors.filter(|color| color.paper() == PaperColor::Free).count();
    u64::try_from(free).unwrap_or(u64::MAX)
}

/// Renders the guests, the strategies, their savings by color, and KSM's results if it ran.
pub(super) fn render(
    guests: &[Guest],
    results: &[StrategyResult],
    ksm: Option<&KsmResults>,
) -> String {
    let mut out = String::new();
    for guest in guests {
        let workload = guest.workload.as_ref().map_or_else(
            || "no traces: no page counts as diverged".to_owned(),
            |workload| format!("diverged: written by {}", printable(&workload.name)),
        );
        let map = heading(guest.locality.map());
        let _ = writeln!(out, "{}: {} ({workload})", printable(&guest.name), map.trim_end());
    }
    let Some(blind) = results.first() else { return out };
    let total = blind.trial.total();
    let _ = writeln!(
        out,
        "{} frames; left out: {} zero, {} free\n",
        thousands(total.hashed),
        thousands(total.zero),
        thousands(free(guests)),
    );
    out.push_str(&strategies(results, blind));
    let _ = writeln!(
        out,
        "\nglanced: partially hashed frames (a few lines of each), to select frames to hash\n\
         of blind: share of blind's hashes, and of its net savings; \
         bound: savings of an oracle with as many hashes\n\
         \nnet savings of hashed frames, by color"
    );
    out.push_str(&colors(results));
    if let Some(ksm) = ksm {
        out.push('\n');
        out.push_str(&merging(ksm, results));
    }
    out
}

fn strategies(results: &[StrategyResult], blind: &StrategyResult) -> String {
    let mut table = table([
        ("strategy", Left),
        ("glanced", Right),
        ("hashed", Right),
        ("of blind", Right),
        ("shared", Right),
        ("within", Right),
        ("diverged", Right),
        ("net", Right),
        ("of blind", Right),
        ("bound", Right),
        ("hashes/net", Right),
        ("CPU ms", Right),
    ]);
    let all = blind.trial.total();
    let share = |part, of| ratio(part, of).map_or_else(String::new, percent);
    for result in results {
        let total = result.trial.total();
        table.add_row(vec![
            result.strategy.to_string(),
            thousands(total.glanced),
            thousands(total.hashed),
            share(total.hashed, all.hashed),
            thousands(total.shared),
            thousands(total.within),
            thousands(total.diverged),
            thousands(total.net()),
            share(total.net(), all.net()),
            share(blind.trial.sharing.bound(total.hashed), all.net()),
            result.hashes_per_page().map_or_else(String::new, |n| format!("{n:.1}")),
            milliseconds(result.cpu()),
        ]);
    }
    finish(&table)
}

/// A row for each color, and a column for each strategy without a budget. The JSON output has the
/// others.
fn colors(results: &[StrategyResult]) -> String {
    let results: Vec<_> =
        results.iter().filter(|result| result.strategy.percent().is_none()).collect();
    let mut rows: BTreeMap<Color, Vec<String>> = BTreeMap::new();
    for (place, result) in results.iter().enumerate() {
        for (color, tally) in result.trial.sharing.colors() {
            let row = rows.entry(color).or_insert_with(|| vec![String::new(); results.len()]);
            if let Some(cell) = row.get_mut(place) {
                *cell = format!("{} of {}", thousands(tally.net()), thousands(tally.hashed));
            }
        }
    }
    let mut table = table([("color", Left)]);
    let names = results.iter().map(|result| result.strategy.to_string());
    table.set_header(std::iter::once("color".to_owned()).chain(names));
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
        if column.index > 0 {
            column.set_cell_alignment(Right);
        }
    }
    for (color, cells) in rows {
        table.add_row(std::iter::once(color.to_string()).chain(cells));
    }
    finish(&table)
}

/// KSM's results, and the CPU time per shared page of KSM and of each strategy.
fn merging(ksm: &KsmResults, results: &[StrategyResult]) -> String {
    let mut out = String::new();
    let runs = [("all frames but free ones", ksm.all), ("adaptive's frames", ksm.selected)];
    for (what, ksm) in runs {
        let _ = writeln!(
            out,
            "the kernel's merging (KSM) of {what}: {} of {} frames in {} ranges shared, {} zero, \
             {} full scans, {:.1} s, {} ms of CPU",
            thousands(ksm.shared),
            thousands(ksm.frames),
            thousands(ksm.ranges),
            thousands(ksm.zero),
            ksm.full_scans,
            ksm.time.as_secs_f64(),
            milliseconds(ksm.cpu),
        );
    }
    let mut table = table([
        ("strategy", Left),
        ("CPU us per shared page", Right),
        ("KSM takes × as much", Right),
    ]);
    let per_page = |cpu: Duration, pages: u64| {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        (pages > 0).then(|| cpu.as_secs_f64() * 1e6 / f64::from(pages))
    };
    let of_kernel = |merged: KsmResult| per_page(merged.cpu, merged.shared);
    let theirs = of_kernel(ksm.all);
    let show = |n: Option<f64>| n.map_or_else(String::new, |n| format!("{n:.1}"));
    let mut row = |name: String, cost: Option<f64>| {
        let times = theirs.zip(cost).map(|(theirs, ours)| theirs / ours);
        table.add_row(vec![name, show(cost), show(times)]);
    };
    row("KSM".to_owned(), theirs);
    row("KSM of adaptive's frames".to_owned(), of_kernel(ksm.selected));
    for result in results {
        row(result.strategy.to_string(), per_page(result.cpu(), result.trial.total().shared));
    }
    out.push_str(&finish(&table));
    out
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}
