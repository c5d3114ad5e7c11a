//! `kaleidoscope replay`: evaluates prefetch policies on traces of clones.
//!
//! An image is colored once. Then every trace is [replayed](runs) under every [policy](policies)
//! and under blind prefetch of every size, with which the policies are [compared](ratios).
mod json;
mod plot;
pub(crate) mod policies;
mod ratios;
mod runs;
mod table;
pub(crate) mod traces;

use crate::analysis::color_image_with;
use crate::args::{ColoringArgs, ImageArgs};
use crate::failure::Failure;
use crate::outfile::{Files, create_if};
use crate::stdio::print;
use kaleidoscope_core::coloring::Rules;
use kaleidoscope_core::manifest::ImageIdentity;
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::replay::{CostModel, Replay};
use policies::{BASELINE, FRONTIER, Guest, PolicyChoice};
use ratios::Comparison;
use std::path::PathBuf;
use std::sync::Arc;

/// Judge prefetch policies on traces of what clones touched.
///
/// Colors a parent's memory image, and replays traces of its clones under every policy in simulated
/// time: how often a clone has to ask and wait, and what it gets for nothing. Blind prefetch of all
/// sizes is replayed beside the policies.
///
/// A trace is a CSV with a header line and columns t_us (microseconds since the clone was resumed)
/// and gfn (hexadecimal); access_write (0 or 1), vcpu and event (only `touch` counts) are used
/// where they are there.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Policies:
  demand             fetches nothing that was not asked for
  blind-next-N       the next N frames by number
  blind-aligned-N    the aligned block of N frames
  paper              the next frames of the same color (Bryant et al., 2011)
  paper-pivot        the frames of the same color on both sides
  region             blocks of related frames, sized by what they are
  predicted          the same, and what is likely to be used is streamed from the start
  recorded=FILE      follows a recording (kaleidoscope record) as far as the clone does; predicted
                     beside it
  recorded-frames=F  streams a recording's frames by number and nothing else, as other
                     record-and-replay systems do
  idle=FILE          streams what an idling throwaway clone touched, then as region
  FILE.toml          as a policy file says (docs/policies.md, kaleidoscope tune)
  oracle             knows the trace: the bound

Examples:
  kaleidoscope replay ram.bin --layout layout.txt --trace traces/*.csv
      all policies on all traces, over Gigabit Ethernet
  kaleidoscope replay ram.bin --trace scan.csv --policy paper,predicted --cost 25gbe --plot s.svg
      two policies on a faster network, with a picture
  kaleidoscope replay ram.bin --trace scan.csv --speed 20 --cost fault=80,page=2
      a trace from an emulator that is 20 times slower than the machine; a network of one's own
  kaleidoscope replay ram.bin --trace scan.csv --json | jq '.[] | {policy, faults, stall_us}'
      for programs")]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    coloring: ColoringArgs,
    /// What clones touched: CSV files
    #[arg(long = "trace", value_name = "FILE.csv", required = true, num_args = 1..)]
    traces: Vec<PathBuf>,
    /// Policies to judge, separated by commas; all of them unless told otherwise
    #[arg(long = "policy", value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    policies: Vec<PolicyChoice>,
    /// What faults and pages cost: gbe, 25gbe, local, or
    /// fault=US,page=US[,zero=US,message=PAGES,stream=PAGES]
    ///
    /// Microseconds from a fault to its page on an idle link; per page on the link; per fault
    /// answered with zeros (20). Most pages of a message (16), and that the background may
    /// have on their way (64).
    #[arg(long, value_name = "MODEL", default_value = "gbe")]
    cost: Cost,
    /// The traces' clocks run this many times as fast: for traces from a slow emulator
    #[arg(long, value_name = "X", default_value = "1", value_parser = positive)]
    speed: f64,
    /// Most frames to fetch beside the one that was asked for
    #[arg(long, value_name = "FRAMES", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..))]
    budget: u32,
    /// Print a JSON array with one object per trace and policy instead of tables
    #[arg(long)]
    json: bool,
    /// Draw faults against waste, and the first trace's footprint over time
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// A cost model, and its text on the command line.
#[derive(Clone, Debug)]
struct Cost {
    text: String,
    model: CostModel,
}

impl std::str::FromStr for Cost {
    type Err = kaleidoscope_core::replay::CostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self { text: text.to_owned(), model: text.parse()? })
    }
}

fn positive(text: &str) -> Result<f64, &'static str> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|n| n.is_finite() && *n > 0.0).ok_or("it must be a number above 0")
}

impl Args {
    /// The files that are read and written.
    pub(crate) fn files(&self) -> Files {
        let policies = self.policies.iter().filter_map(PolicyChoice::input);
        self.image.inputs().reads(&self.traces).reads(policies).writes(&self.plot)
    }

    /// Replays the traces.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let image = self.image.open()?;
        let picture = create_if(self.plot.as_ref())?;
        let registers = self.image.registers(&image)?;
        let analysis = color_image_with(self.coloring, &image, registers, Rules::default())?;
        let map = analysis.coloring.map;
        let traces = traces::read(&self.traces, map.layout(), self.speed)?;
        let heading = crate::map_output::table::heading(&map);
        let identity =
            ImageIdentity::of(&image, &map).map_err(|e| Failure::at(self.image.path(), e))?;
        let guest = Guest { locality: Arc::new(LocalityOrder::new(map)), identity };

        let chosen = self.chosen();
        let mut policies = chosen.clone();
        policies.extend([BASELINE].into_iter().chain(FRONTIER));
        let policies = distinct(policies);
        let budget = usize::try_from(self.budget).unwrap_or(usize::MAX);
        let options = Replay { budget, ..Replay::new(self.cost.model) };
        let results = runs::run(&policies, &traces, &guest, &options)?;

        let (judged, _) = results.split_at(chosen.len());
        let judged: Vec<_> = judged.iter().collect();
        let comparison = Comparison::new(&results, &chosen);
        if let Some(output) = picture {
            plot::write(output, &comparison, &traces, &judged)?;
        }
        print(&if self.json {
            json::render(&traces, &judged, &self.cost.text)
        } else {
            let tables = table::render(&traces, &results, &judged, &comparison);
            format!("{heading}cost: {}\n\n{tables}", self.cost.text)
        })
    }

    fn chosen(&self) -> Vec<PolicyChoice> {
        if self.policies.is_empty() {
            PolicyChoice::defaults()
        } else {
            distinct(self.policies.clone())
        }
    }
}

/// Removes duplicates, keeping the first of each.
fn distinct(policies: Vec<PolicyChoice>) -> Vec<PolicyChoice> {
    let mut kept: Vec<PolicyChoice> = Vec::with_capacity(policies.len());
    for policy in policies {
        if !kept.contains(&policy) {
            kept.push(policy);
        }
    }
    kept
}
