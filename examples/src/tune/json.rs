//! The scores as one JSON object.

use super::folds::{Tuned, mean};
use super::guests::Guest;
use kaleidoscope_core::tune::{Score, Tuner};
use serde::Serialize;

#[derive(Serialize)]
struct Report<'a> {
    policy: &'a str,
    price: f64,
    rounds: u32,
    start: Figures,
    tuned_on: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<Figures>,
    guests: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    guest: &'a str,
    kernel: &'a str,
    traces: usize,
    tuned_on: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<Figures>,
}

/// A score, and its cost by the tuner's objective.
#[derive(Serialize)]
struct Figures {
    relative_faults: f64,
    relative_waste: f64,
    coverage: f64,
    accuracy: f64,
    relative_cost: f64,
}

/// The object, ending with a line feed.
pub(super) fn render(guests: &[Guest], tuned: &Tuned, tuner: &Tuner) -> String {
    let figures = |score: &Score| Figures {
        relative_faults: score.faults,
        relative_waste: score.waste,
        coverage: score.coverage,
        accuracy: score.accuracy,
        relative_cost: score.cost(tuner.price),
    };
    let held_out = Some(mean(guests, &tuned.held_out)).filter(|_| !tuned.held_out.is_empty());
    let rows = guests.iter().zip(&tuned.in_sample).enumerate().map(|(at, (guest, score))| Row {
        guest: &guest.name,
        kernel: &guest.kernel,
        traces: guest.traces(),
        tuned_on: figures(score),
        held_out: tuned.held_out.get(at).map(figures),
    });
    let report = Report {
        policy: &tuned.settings.name,
        price: tuner.price,
        rounds: tuner.rounds,
        start: figures(&tuned.start),
        tuned_on: figures(&mean(guests, &tuned.in_sample)),
        held_out: held_out.as_ref().map(figures),
        guests: rows.collect(),
    };
    // Serializing strings and numbers cannot fail.
    let mut text = serde_json::to_string_pretty(&report).unwrap_or_default();
    text.push('\n');
    text
}
