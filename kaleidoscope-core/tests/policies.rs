//! Checks the claims about policies on real guests.
//!
//! Prints the table of the README, and checks the claims behind it, on the guests of
//! `KALEIDOSCOPE_GUESTS` (see `guests`). The shipped windows were tuned on other guests. The
//! results do not depend on the speed of the machine, because time is simulated.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the test prints results and skipped cases for humans"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot read its guests fails")]

mod guests;
mod writes;

use guests::{Guest, guests};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::coloring::{ColoringOptions, color, color_by_page_tables};
use kaleidoscope_core::prefetch::{
    Blind, ColorGuide, Colored, Demand, LocalityOrder, Paper, Predict, PrefetchPolicy, Recorded,
    RecordedOrder, Settings, Streamed,
};
use kaleidoscope_core::recording::{Similarity, TranslatedRecording};
use kaleidoscope_core::registers::VcpuRegisters;
use kaleidoscope_core::replay::{CostModel, Metrics, Replay, Trace, replay};
use std::path::Path;
use std::sync::Arc;

/// Results of a policy on one trace; faults, waste and stalls relative to blind aligned blocks of
/// 16 frames.
#[derive(Clone, Copy, Debug)]
struct Row {
    faults: f64,
    waste: f64,
    coverage: f64,
    accuracy: f64,
    stall: f64,
    stall_gbe: f64,
    free_transferred: u32,
}

/// Replays one trace of a guest under a policy, which is created anew for each replay.
fn judge(guest: &Guest, trace: &str, make: &dyn Fn() -> Box<dyn PrefetchPolicy>) -> Row {
    judge_on(&guest.locality, &guest.traces[trace], make)
}

fn judge_on(
    locality: &Arc<LocalityOrder>,
    trace: &Trace,
    make: &dyn Fn() -> Box<dyn PrefetchPolicy>,
) -> Row {
    let run = |policy: &mut dyn PrefetchPolicy, costs| {
        replay(trace, locality, policy, &Replay::new(costs))
    };
    let ours = run(make().as_mut(), CostModel::GBE25);
    let blind = run(&mut Blind::aligned(16), CostModel::GBE25);
    let slow = run(make().as_mut(), CostModel::GBE);
    let slow_blind = run(&mut Blind::aligned(16), CostModel::GBE);
    let faults = |m: &Metrics| f64::from((m.faults + m.late).max(1));
    Row {
        faults: faults(&ours) / faults(&blind),
        waste: f64::from(ours.wasted().max(1)) / f64::from(blind.wasted().max(1)),
        coverage: ours.coverage(),
        accuracy: ours.accuracy(),
        stall: ours.stall_us / blind.stall_us,
        stall_gbe: slow.stall_us / slow_blind.stall_us,
        free_transferred: ours.free_transferred,
    }
}

fn geometric_mean(rows: &[Row], of: impl Fn(&Row) -> f64) -> f64 {
    (rows.iter().map(|r| of(r).ln()).sum::<f64>() / rows.len() as f64).exp()
}

fn mean(rows: &[Row], of: impl Fn(&Row) -> f64) -> f64 {
    rows.iter().map(of).sum::<f64>() / rows.len() as f64
}

/// Means over the rows: geometric for ratios, arithmetic for shares.
fn summary(name: &str, rows: &[Row]) -> Row {
    let sum = Row {
        faults: geometric_mean(rows, |r| r.faults),
        waste: geometric_mean(rows, |r| r.waste),
        coverage: mean(rows, |r| r.coverage),
        accuracy: mean(rows, |r| r.accuracy),
        stall: geometric_mean(rows, |r| r.stall),
        stall_gbe: geometric_mean(rows, |r| r.stall_gbe),
        free_transferred: rows.iter().map(|r| r.free_transferred).sum(),
    };
    println!(
        "| {name} | {} | {:.2} | {:.2} | {:.3} | {:.3} | {:.2} | {:.2} | {} |",
        rows.len(),
        sum.faults,
        sum.waste,
        sum.coverage,
        sum.accuracy,
        sum.stall,
        sum.stall_gbe,
        sum.free_transferred
    );
    sum
}

fn colored(guest: &Guest, settings: Settings) -> Box<dyn PrefetchPolicy> {
    colored_on(&guest.locality, settings)
}

fn colored_on(locality: &Arc<LocalityOrder>, settings: Settings) -> Box<dyn PrefetchPolicy> {
    Box::new(Colored::new(Arc::new(ColorGuide::new(Arc::clone(locality), settings))))
}

fn region() -> Settings {
    Settings::default().without_prediction("region")
}

/// A recording made on one guest, as a policy for another (or the same).
fn recorded(guest: &Guest, from: &Guest, trace: &str) -> Box<dyn PrefetchPolicy> {
    let found = from.recording(trace).translate(&guest.locality, Some(&guest.identity));
    let predict = match found.likeness {
        Similarity::Snapshot | Similarity::Kernel => Predict::Lost,
        Similarity::Other => Predict::Always,
    };
    let frames = found.frames.iter().map(|t| (t.frame, t.confidence));
    let recorded_order = Arc::new(RecordedOrder::new(&guest.locality, frames, 0.5));
    let guide = Arc::new(ColorGuide::new(Arc::clone(&guest.locality), Settings::default()));
    Box::new(Recorded::new("recorded", guide, recorded_order, predict))
}

fn frames(translation: &TranslatedRecording) -> Arc<[FrameIndex]> {
    translation.at_least(0.5).map(|t| t.frame).collect()
}

/// Existing record-and-replay: the frames by number, then demand fetching only.
fn by_number(guest: &Guest, from: &Guest, trace: &str) -> Box<dyn PrefetchPolicy> {
    let found = from.recording(trace).by_frame_number(&guest.locality, Some(&guest.identity));
    Box::new(Streamed::new(
        "recorded-frames",
        found.frames.iter().map(|t| t.frame).collect(),
        Demand,
    ))
}

/// The command of a trace; the name of a second run ends in a number.
fn command(trace: &str) -> &str {
    trace.trim_end_matches("-2")
}

#[test]
fn policies_keep_their_promises_on_real_guests() {
    let guests = guests();
    if guests.is_empty() {
        return;
    }
    let all: Vec<(&Guest, &str)> =
        guests.iter().flat_map(|g| g.traces.keys().map(move |t| (g, t.as_str()))).collect();
    let on_all = |name: &str, make: &dyn Fn(&Guest) -> Box<dyn PrefetchPolicy>| {
        let rows: Vec<Row> = all.iter().map(|(g, t)| judge(g, t, &|| make(g))).collect();
        (summary(name, &rows), rows)
    };
    println!(
        "| policy | replays | faults | waste | coverage | accuracy | stall, 25 GbE | stall, GbE \
         | free frames moved |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    on_all("demand", &|_| Box::new(Demand));
    on_all("blind-next-16", &|_| Box::new(Blind::next(16)));
    on_all("blind-aligned-64", &|_| Box::new(Blind::aligned(64)));
    let (paper, _) = on_all("paper", &|g| Box::new(Paper::new(Arc::clone(&g.locality))));
    let (region_sum, _) = on_all("region", &|g| colored(g, region()));
    let (first, rows) = on_all("predicted", &|g| colored(g, Settings::default()));

    assert!(first.coverage >= 0.90 && first.accuracy >= 0.55, "{first:?}");
    assert!(first.stall <= 0.45 && first.stall_gbe <= 0.60, "{first:?}");
    assert!(
        rows.iter().all(|r| r.faults < 1.0 && r.waste < 1.0),
        "better than blind on both: {rows:?}"
    );
    assert!(
        first.faults <= 0.35 * paper.faults && first.waste <= paper.waste,
        "{first:?} {paper:?}"
    );
    assert_eq!(region_sum.free_transferred + first.free_transferred + paper.free_transferred, 0);

    // An idle recording, then another command.
    let mut rows = Vec::new();
    for (guest, trace) in all.iter().filter(|(g, t)| g.traces.contains_key("idle") && *t != "idle")
    {
        let idle = guest.recording("idle").translate(&guest.locality, Some(&guest.identity));
        rows.push(judge(guest, trace, &|| {
            let guide = Arc::new(ColorGuide::new(Arc::clone(&guest.locality), region()));
            Box::new(Streamed::new("idle", frames(&idle), Colored::new(guide)))
        }));
    }
    if !rows.is_empty() {
        let idle = summary("idle self-recording, then region", &rows);
        assert!(idle.coverage >= 0.92 && idle.accuracy >= 0.60 && idle.free_transferred == 0);
    }

    // Recordings of the same command, of another snapshot and of another command.
    type Make = fn(&Guest, &Guest, &str) -> Box<dyn PrefetchPolicy>;
    let pairs = |name: &str, make: Make, wanted: &dyn Fn(&Guest, &str, &Guest, &str) -> bool| {
        let mut rows = Vec::new();
        for (guest, trace) in &all {
            for (from, recording) in all.iter().filter(|(f, r)| wanted(guest, trace, f, r)) {
                rows.push(judge(guest, trace, &|| make(guest, from, recording)));
            }
        }
        (!rows.is_empty()).then(|| (summary(name, &rows), rows))
    };
    let same_guest = |g: &Guest, f: &Guest| g.name == f.name;
    let very = |g: &Guest, t: &str, f: &Guest, r: &str| same_guest(g, f) && t == r;
    let again = |g: &Guest, t: &str, f: &Guest, r: &str| {
        same_guest(g, f) && t != r && command(t) == command(r)
    };
    let elsewhere = |g: &Guest, t: &str, f: &Guest, r: &str| !same_guest(g, f) && command(t) == r;
    let wrong = |g: &Guest, t: &str, f: &Guest, r: &str| {
        same_guest(g, f) && command(t) != command(r) && r != "idle"
    };
    if let Some((sum, _)) = pairs("recorded: this very run", recorded, &very) {
        assert!(sum.coverage >= 0.99 && sum.accuracy >= 0.97 && sum.stall <= 0.05, "{sum:?}");
        assert_eq!(sum.free_transferred, 0);
    }
    if let Some((sum, _)) = pairs("recorded: another run of the command", recorded, &again) {
        assert!(sum.coverage >= 0.97 && sum.accuracy >= 0.83 && sum.stall <= 0.05, "{sum:?}");
    }
    pairs("the same by frame numbers, then demand", by_number, &again);
    if let Some((sum, _)) = pairs("recorded: another snapshot and kernel", recorded, &elsewhere) {
        assert!(sum.coverage >= 0.95 && sum.accuracy >= 0.75, "{sum:?}");
        assert_eq!(sum.free_transferred, 0);
    }
    pairs("the same by frame numbers, then demand", by_number, &elsewhere);
    if let Some((sum, rows)) = pairs("recorded: another command", recorded, &wrong) {
        assert!(sum.coverage >= 0.91 && sum.waste <= 0.30, "{sum:?}");
        let (_, alone) = pairs("region on these", |g, _, _| colored(g, region()), &wrong).unwrap();
        for (row, alone) in rows.iter().zip(&alone) {
            assert!(row.stall <= 1.1 * alone.stall, "worse than region alone: {row:?} {alone:?}");
        }
    }
    pairs("the same by frame numbers, then demand", by_number, &wrong);
}

/// The guest with nothing known except the page tables of its processes.
fn by_page_tables(guest: &Guest) -> Arc<LocalityOrder> {
    let root = std::env::var_os("KALEIDOSCOPE_GUESTS").unwrap();
    let (image, registers) = guests::open(&Path::new(&root).join(&guest.name));
    let vcpu = registers[0].clone();
    let coloring = color(&image, &ColoringOptions::default().registers(registers)).unwrap();
    let roots = coloring.processes().iter().map(|process| Some(process.root.0));
    let registers = roots.map(|cr3| VcpuRegisters { cr3, ..vcpu.clone() }).collect();
    let options = ColoringOptions::default().registers(registers);
    Arc::new(LocalityOrder::new(color_by_page_tables(&image, &options).unwrap().map))
}

#[test]
fn page_tables_alone_are_better_than_nothing() {
    let guests = guests();
    if guests.is_empty() {
        return;
    }
    let localities: Vec<_> = guests.iter().map(by_page_tables).collect();
    let on_all = |name: &str, settings: &dyn Fn(&LocalityOrder) -> Settings| {
        let rows = guests.iter().zip(&localities).flat_map(|(guest, locality)| {
            let judged =
                |trace| judge_on(locality, trace, &|| colored_on(locality, settings(locality)));
            guest.traces.values().map(judged).collect::<Vec<_>>()
        });
        summary(name, &rows.collect::<Vec<_>>())
    };
    let shipped =
        on_all("by page tables alone", &|locality| Settings::shipped_for(locality.map().kernel()));
    let linux = on_all("the same, settings for Linux", &|_| Settings::default());
    assert!(shipped.faults <= 0.97 && shipped.waste <= 1.02, "{shipped:?}");
    assert!(linux.waste > 10.0, "settings for other guests would do as well: {linux:?}");
}
