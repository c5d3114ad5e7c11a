//! `kaleidoscope bench`: what cloning costs on this machine, beside the least that it could.

mod bare;
mod cores;
mod measure;
mod world;

use crate::failure::Failure;
use crate::table::{finish, table};
use comfy_table::CellAlignment::{Left, Right};
use cores::Cores;
use measure::Pair;
use serde::Serialize;
use std::time::Duration;

/// Measure what cloning costs on this machine.
///
/// Pages go over a Unix socket from a page server to clones in this process. Each figure stands beside a bare loop that moves the
/// same pages over a socket into the same memory with `read`, `write` and a copy alone, measured in alternating rounds of the
/// same run; times are medians. "One core" shows what the processor has to do, "two cores" how long it takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kaleidoscope bench
  kaleidoscope bench --rounds 3 --largest 8192
  kaleidoscope bench --json | jq '.rows[] | {name, ratio}'")]
pub(crate) struct Args {
    /// Rounds of each measurement.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// The largest clone that is started, in MiB.
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=262_144))]
    largest: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// One measurement.
#[derive(Serialize)]
struct Row {
    name: String,
    /// What it is measured in.
    unit: &'static str,
    /// The baseline; absent where there is none.
    bare: Option<f64>,
    ours: f64,
    /// Ours in relation to the baseline.
    ratio: Option<f64>,
    /// What we aim at.
    aim: &'static str,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl Row {
    /// A time and its baseline's.
    fn slower(name: &str, pair: Pair, aim: &'static str) -> Self {
        let (bare, ours) = (us(pair.bare), us(pair.ours));
        Self {
            name: name.into(),
            unit: "us",
            bare: Some(bare),
            ours,
            ratio: Some(ours / bare),
            aim,
        }
    }

    /// The speed at which an image of 64 MiB is moved, and its baseline's.
    fn speed(name: &str, pair: Pair, aim: &'static str) -> Self {
        let speed = |time: Duration| 64.0 / time.as_secs_f64();
        let (bare, ours) = (speed(pair.bare), speed(pair.ours));
        Self {
            name: name.into(),
            unit: "MiB/s",
            bare: Some(bare),
            ours,
            ratio: Some(ours / bare),
            aim,
        }
    }

    fn alone(name: impl Into<String>, unit: &'static str, ours: f64, aim: &'static str) -> Self {
        Self { name: name.into(), unit, bare: None, ours, ratio: None, aim }
    }
}

impl Args {
    /// Measures and prints.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let report = self.measure().map_err(Failure::new)?;
        if self.json {
            let text = serde_json::to_string_pretty(&report).map_err(Failure::new)?;
            println!("{text}");
            return Ok(());
        }
        let columns = [
            ("", Left),
            ("bare", Right),
            ("ours", Right),
            ("", Left),
            ("ratio", Right),
            ("aim", Right),
        ];
        let mut out = table(columns);
        for row in &report.rows {
            let number = |n: f64| if n < 10.0 { format!("{n:.2}") } else { format!("{n:.0}") };
            let optional = |n: Option<f64>| n.map_or_else(String::new, |n| format!("{n:.2}"));
            out.add_row([
                row.name.clone(),
                row.bare.map_or_else(String::new, number),
                number(row.ours),
                row.unit.to_owned(),
                optional(row.ratio),
                row.aim.to_owned(),
            ]);
        }
        print!("{}", finish(&out));
        Ok(())
    }

    fn measure(&self) -> Result<Report, Box<dyn std::error::Error>> {
        let rounds = usize::from(self.rounds);
        let mut rows = Vec::new();
        for (cores, on) in [(Cores::One, "one core"), (Cores::Two, "two cores")] {
            for (checksums, with) in [(true, ""), (false, ", no checksum")] {
                let pair = measure::fault(rounds, checksums, cores)?;
                rows.push(Row::slower(&format!("fault, {on}{with}"), pair, "<= 1.3"));
            }
            for (checksums, with, aim) in [(true, "", ">= 0.6"), (false, ", no checksum", ">= 0.8")]
            {
                let pair = measure::stream(rounds, checksums, cores)?;
                rows.push(Row::speed(&format!("stream, {on}{with}"), pair, aim));
            }
        }
        let alone = measure::crossing(rounds, Cores::Two)?;
        let speed = 64.0 / alone.as_secs_f64();
        rows.push(Row::alone("bare stream, two cores, placed nowhere", "MiB/s", speed, ""));
        let (least, most) = measure::fairness()?;
        #[expect(clippy::cast_precision_loss, reason = "counts of pages are below 2^53")]
        let unfair = most as f64 / least.max(1) as f64;
        rows.push(Row::alone("16 clones, most / least pages", "", unfair, "<= 1.5"));
        let (time, bytes) = measure::bookkeeping(rounds)?;
        rows.push(Row::alone("bookkeeping per frame", "ns", us(time) * 1e3, "<= 100"));
        rows.push(Row::alone("memory per frame", "bytes", bytes, "<= 16"));
        for mib in [64, 512, 4096, 16_384, 65_536].into_iter().filter(|mib| *mib <= self.largest) {
            let time = measure::start_time(mib, 3 * rounds)?;
            rows.push(Row::alone(
                format!("start of a clone of {mib} MiB"),
                "us",
                us(time),
                "<= 1000",
            ));
        }
        Ok(Report { rows })
    }
}
