//! The scores as a table, and the policy file's heading comment.

use super::folds::{Tuned, kernels, mean};
use super::guests::Guest;
use crate::args::ColoringArgs;
use crate::map_output::statistics::counted;
use crate::map_output::table::{finish, percent, table};
use comfy_table::CellAlignment::{self, Left, Right};
use comfy_table::Table;
use kaleidoscope_core::tune::{Score, Tuner};
use std::fmt::Write;

/// A table of the scores on each guest.
pub(super) fn render(guests: &[Guest], tuned: &Tuned) -> String {
    let mut out = String::new();
    let mut grid = grid(!tuned.held_out.is_empty());
    let mut row = |name: &str, kernel: &str, traces: usize, scores: [Option<&Score>; 2]| {
        let mut cells = vec![name.to_owned(), kernel.to_owned(), traces.to_string()];
        cells.extend(scores.into_iter().flatten().flat_map(cells_of));
        grid.add_row(cells);
    };
    for (at, guest) in guests.iter().enumerate() {
        let scores = [tuned.held_out.get(at), tuned.in_sample.get(at)];
        row(&guest.name, &guest.kernel, guest.traces(), scores);
    }
    let traces = guests.iter().map(Guest::traces).sum();
    let held_out = Some(mean(guests, &tuned.held_out)).filter(|_| !tuned.held_out.is_empty());
    let in_sample = mean(guests, &tuned.in_sample);
    row("mean over traces", "", traces, [held_out.as_ref(), Some(&in_sample)]);
    out.push_str(&finish(&grid));
    let _ = writeln!(
        out,
        "\nfaults, waste: relative to blind-aligned-16; before tuning: {}",
        score_text(&tuned.start)
    );
    out.push_str(if held_out.is_some() {
        "held out: scores of settings that were tuned only on guests with other kernels\n\
         tuned on: scores on the same guests that the settings were tuned on\n"
    } else {
        "scores on the same guests that the settings were tuned on; --cross-validate estimates \
         scores on other guests\n"
    });
    out
}

fn grid(cross_validated: bool) -> Table {
    const FIRST: [(&str, CellAlignment); 3] =
        [("guest", Left), ("kernel", Left), ("traces", Right)];
    let [a, b, c] = FIRST;
    let right = |title| (title, Right);
    if cross_validated {
        table([
            a,
            b,
            c,
            right("held out: faults"),
            right("waste"),
            right("coverage"),
            right("accuracy"),
            right("tuned on: faults"),
            right("waste"),
            right("coverage"),
            right("accuracy"),
        ])
    } else {
        table([a, b, c, right("faults"), right("waste"), right("coverage"), right("accuracy")])
    }
}

fn cells_of(score: &Score) -> [String; 4] {
    [
        format!("{:.3}", score.faults),
        format!("{:.3}", score.waste),
        percent(score.coverage),
        percent(score.accuracy),
    ]
}

/// A score as a line of text.
fn score_text(score: &Score) -> String {
    let [faults, waste, coverage, accuracy] = cells_of(score);
    format!("faults {faults}, waste {waste}, coverage {coverage}, accuracy {accuracy}")
}

/// The origin and scores of a policy file, as TOML comments.
pub(super) fn comment(
    guests: &[Guest],
    coloring: ColoringArgs,
    tuned: &Tuned,
    tuner: &Tuner,
) -> String {
    let traces: usize = guests.iter().map(Guest::traces).sum();
    let mut out = format!(
        "# Tuned by `kaleidoscope tune` on {} and {}{}; price of waste {}, at most {}.\n",
        counted(guests.len(), "guest"),
        counted(traces, "trace"),
        if coloring.page_tables { ", colored by page tables alone" } else { "" },
        tuner.price,
        counted(usize::try_from(tuner.rounds).unwrap_or(usize::MAX), "round"),
    );
    for kernel in kernels(guests) {
        let of_kernel = || guests.iter().filter(|guest| guest.kernel == kernel);
        let traces: usize = of_kernel().map(Guest::traces).sum();
        let (guests, traces) = (counted(of_kernel().count(), "guest"), counted(traces, "trace"));
        let _ = writeln!(out, "#   kernel {kernel}: {guests}, {traces}");
    }
    let in_sample = score_text(&mean(guests, &tuned.in_sample));
    let _ = writeln!(out, "# On these, relative to blind-aligned-16: {in_sample}.");
    if !tuned.held_out.is_empty() {
        let held_out = score_text(&mean(guests, &tuned.held_out));
        let _ = writeln!(out, "# On guests whose kernel was held out: {held_out}.");
    }
    out.push('\n');
    out
}
