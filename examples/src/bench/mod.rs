//! `kaleidoscope bench`: the cost of cloning on this machine, compared with a minimal baseline.

mod bare;
mod cores;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod kvm;
mod measure;
mod world;

use crate::args::{MemorySize, memory_size};
use crate::failure::Failure;
use crate::map_output::table::{finish, table};
use crate::stdio::{print, print_line};
use comfy_table::CellAlignment::{Left, Right};
use cores::Cores;
use measure::Pair;
use serde::Serialize;
use std::cell::RefCell;
use std::time::Duration;

/// Measure what cloning costs on this machine.
///
/// Pages go over a Unix socket from a page server to clones in this process. Each figure stands
/// beside a bare loop that moves the same pages over a socket into the same memory with `read`,
/// `write` and a copy alone, measured in alternating rounds of the same run; times are medians.
/// "One core" shows what the processor has to do, "two cores" how long it takes.
///
/// A wrong page ends it with an error. An aim that is missed does not: on a busy host the same code
/// misses some.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  kaleidoscope bench
      all measurements that need no KVM
  kaleidoscope bench stream --rounds 30
      those with this in their name, in more rounds
  kaleidoscope bench --rounds 3 --max-memory 8G
      a short run on a small host
  kaleidoscope bench --json | jq '.rows[] | {name, ratio}'
      for programs"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Measure only what has this in its name.
    #[arg(default_value = "", hide_default_value = true)]
    filter: String,
    /// Rounds of each measurement.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Largest clone to start, such as 512M or 2G; a bare number is in MiB
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = memory_size(64..=262_144))]
    max_memory: MemorySize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Names of all measurements that there are, as they are come by.
    #[arg(skip)]
    known: RefCell<Vec<String>>,
}

/// What else can be measured.
#[derive(Debug, clap::Subcommand)]
enum What {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Kvm(kvm::Args),
}

/// One measurement.
#[derive(Serialize)]
struct Row {
    name: String,
    /// Unit of `bare` and `ours`.
    unit: &'static str,
    /// The baseline, if there is one.
    bare: Option<f64>,
    ours: f64,
    /// `ours` divided by `bare`.
    ratio: Option<f64>,
    /// The target, for people.
    aim: String,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Prints a table, or a JSON object.
    fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            let text = serde_json::to_string_pretty(self).map_err(Failure::new)?;
            return print_line(text);
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
        for row in &self.rows {
            let number = |n: f64| if n < 10.0 { format!("{n:.2}") } else { format!("{n:.0}") };
            let optional = |n: Option<f64>| n.map_or_else(String::new, |n| format!("{n:.2}"));
            out.add_row([
                row.name.clone(),
                row.bare.map_or_else(String::new, number),
                number(row.ours),
                row.unit.to_owned(),
                optional(row.ratio),
                row.aim.clone(),
            ]);
        }
        print(&finish(&out))
    }
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl Row {
    /// A row of times in microseconds.
    fn slower(name: String, pair: Pair, aim: &str) -> Self {
        let (bare, ours) = (us(pair.bare), us(pair.ours));
        Self { name, unit: "us", bare: Some(bare), ours, ratio: Some(ours / bare), aim: aim.into() }
    }

    /// A row of throughputs, from the times to transfer an image of 64 MiB.
    fn speed(name: String, pair: Pair, aim: &str) -> Self {
        let speed = |time: Duration| 64.0 / time.as_secs_f64();
        let (bare, ours) = (speed(pair.bare), speed(pair.ours));
        Self {
            name,
            unit: "MiB/s",
            bare: Some(bare),
            ours,
            ratio: Some(ours / bare),
            aim: aim.into(),
        }
    }

    fn alone(
        name: impl Into<String>,
        unit: &'static str,
        ours: f64,
        aim: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), unit, bare: None, ours, ratio: None, aim: aim.into() }
    }
}

impl Args {
    /// Measures and prints.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match &self.what {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Some(What::Kvm(args)) => args.run(),
            None => self.non_empty(self.measure().map_err(|e| Failure::of(&*e))?)?.print(self.json),
        }
    }

    /// Fails if the filter matches no measurement.
    fn non_empty(&self, report: Report) -> Result<Report, Failure> {
        if !report.rows.is_empty() {
            return Ok(report);
        }
        let filter = &self.filter;
        Err(Failure::new(format_args!("no measurement has {filter:?} in its name")).hint(format!(
            "measurements: {}; and `kaleidoscope bench kvm`",
            self.known.borrow().join("; ")
        )))
    }

    /// Whether the filter selects a measurement. Records its name for the error of an empty report.
    fn wants(&self, name: &str) -> bool {
        self.known.borrow_mut().push(name.to_owned());
        name.contains(&self.filter)
    }

    fn wants_one_of(&self, names: &[&str]) -> bool {
        // Not `any`, which would stop at the first match and leave names unrecorded.
        names.iter().filter(|name| self.wants(name)).count() > 0
    }

    fn measure(&self) -> Result<Report, Box<dyn std::error::Error>> {
        let rounds = usize::from(self.rounds);
        let mut rows = Vec::new();
        for (cores, on) in [(Cores::One, "one core"), (Cores::Two, "two cores")] {
            for (checksums, with) in [(true, ""), (false, ", no checksum")] {
                let name = format!("fault, {on}{with}");
                if self.wants(&name) {
                    let pair = measure::fault(rounds, checksums, cores)?;
                    rows.push(Row::slower(name, pair, "<= 1.3"));
                }
            }
            for (checksums, with, aim) in [(true, "", ">= 0.6"), (false, ", no checksum", ">= 0.8")]
            {
                let name = format!("stream, {on}{with}");
                if self.wants(&name) {
                    let pair = measure::stream(rounds, checksums, cores)?;
                    rows.push(Row::speed(name, pair, aim));
                }
            }
        }
        let name = "bare stream, two cores, not installed";
        if self.wants(name) {
            let alone = measure::crossing(rounds, Cores::Two)?;
            rows.push(Row::alone(name, "MiB/s", 64.0 / alone.as_secs_f64(), ""));
        }
        let name = "16 clones, most / least pages";
        if self.wants(name) {
            let (least, most) = measure::fairness()?;
            #[expect(clippy::cast_precision_loss, reason = "counts of pages are below 2^53")]
            let unfair = most as f64 / least.max(1) as f64;
            rows.push(Row::alone(name, "", unfair, "<= 1.5"));
        }
        let names = ["4 siblings over one connection", "pages sent per page delivered"];
        if self.wants_one_of(&names) {
            let (pair, crossed) = measure::siblings(rounds)?;
            let [time_name, crossed_name] = names;
            // The baseline is four connections.
            rows.push(Row::slower(time_name.into(), pair, ""));
            rows.push(Row::alone(crossed_name, "", crossed, "0.25"));
        }
        let names = ["bookkeeping per frame", "memory per frame"];
        if self.wants_one_of(&names) {
            let (time, bytes) = measure::bookkeeping(rounds)?;
            let [time_name, bytes_name] = names;
            rows.push(Row::alone(time_name, "ns", us(time) * 1e3, "<= 100"));
            rows.push(Row::alone(bytes_name, "bytes", bytes, "<= 16"));
        }
        for mib in
            [64, 512, 4096, 16_384, 65_536].into_iter().filter(|mib| *mib <= self.max_memory.mib())
        {
            let name = format!("start of a clone of {mib} MiB");
            if self.wants(&name) {
                let time = measure::start_time(mib, 3 * rounds)?;
                rows.push(Row::alone(name, "us", us(time), "<= 1000"));
            }
        }
        Ok(Report { rows })
    }
}
