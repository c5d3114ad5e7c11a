//! `kaleidoscope dedup`: measures which pages the guests of a host could share, and how many hashes
//! it takes to find them.
//!
//! Guests are [opened and colored](guests). Every [strategy](strategies) selects frames and hashes
//! them, and [`SharingStatistics`](kaleidoscope_core::dedup::SharingStatistics) counts the savings.
//! With `--ksm` the kernel's own page merging runs on the same memory.
mod chart;
mod clock;
mod guests;
mod json;
mod ksm;
mod learn;
mod strategies;
mod table;

use crate::args::{ColoringArgs, LayoutArgs};
use crate::failure::Failure;
use crate::outfile::{Files, create_if};
use crate::stdio::print;
use guests::Guest;
use kaleidoscope_core::dedup::HitRates;
use std::path::PathBuf;

/// Find out which pages guests of one host could share, and how little hashing finds them.
///
/// Colors one or more memory images, and lets every strategy choose frames to hash: all (blind),
/// the two sets of the Kaleidoscope paper, and the adaptive selector, which knows from names and
/// colors where equal pages are, alone and with a filter that first looks at a few lines of each
/// page. Zero and free frames are left out everywhere. Where traces of clones lie beside an image
/// (traces/*.csv), pages that the clone which writes most would write to count as diverged.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Strategies:
  blind              every frame
  kernel+executable  kernel pages, but not the page cache, and executable pages (the paper)
  cache+executable   the page cache and executable pages (an earlier section of the paper)
  adaptive-N%        adaptive, with at most N % of the hashes that blind makes
  adaptive           as long as it is worth it
  sieved-N%          reads a few lines of every page, and hashes only pages whose lines are
                     alike; at most N % of blind's hashes
  sieved             the same for the candidates of the adaptive selector

Examples:
  kaleidoscope dedup guests/web guests/sql
      two guests as the lab makes them: folders with ram.bin, layout.txt, regs.txt, traces
  kaleidoscope dedup web.core sql.core --plot yield.png
      two dumps, and a picture of the yield against the effort
  kaleidoscope dedup guests/web guests/sql --ksm
      beside what the kernel's page merging finds on the same memory, and what that costs (as root)
  kaleidoscope dedup guests/web guests/sql --json | jq '.strategies | map_values(.net_frames)'
      for programs
  kaleidoscope dedup guests/* --hit-rates-to hit_rates.csv
      learn from one's own guests where equal pages are; --hit-rates-from uses it")]
pub(crate) struct Args {
    /// Memory images, or folders with ram.bin; ram.kscope beside an image spares coloring it
    #[arg(value_name = "IMAGE", required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// Of all images that are files
    #[command(flatten)]
    layout: LayoutArgs,
    #[command(flatten)]
    coloring: ColoringArgs,
    /// What the adaptive selector knows beforehand; what is shipped unless told otherwise
    #[arg(long, value_name = "FILE.csv")]
    hit_rates_from: Option<PathBuf>,
    /// Learn the hit rates from every pair of the guests and write them, for --hit-rates-from
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["ksm", "plot", "json"])]
    hit_rates_to: Option<PathBuf>,
    /// Have the kernel merge the same memory, and then only what the adaptive selector chose
    /// (needs root and /sys/kernel/mm/ksm; its settings are restored)
    #[arg(long)]
    ksm: bool,
    /// Print a JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Draw the yield against the effort
    #[arg(long, value_name = "FILE.png")]
    plot: Option<PathBuf>,
}

impl Args {
    /// The files that are read and written.
    pub(crate) fn files(&self) -> Files {
        let reads = Files::new().reads_guests(&self.images).reads(self.layout.inputs());
        // Registers, layout, traces and the manifest are next to an image file.
        let folders = self.images.iter().filter_map(|image| image.parent());
        let maps = self.images.iter().map(|image| image.with_extension("kscope"));
        let reads = reads.reads_guests(folders).reads(maps).reads(&self.hit_rates_from);
        reads.writes(&self.hit_rates_to).writes(&self.plot)
    }

    /// Runs all strategies on the images.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let hit_rates = self.hit_rates()?;
        let learned = create_if(self.hit_rates_to.as_ref())?;
        let plot = create_if(self.plot.as_ref())?;
        let guests: Result<Vec<_>, _> =
            self.images.iter().map(|path| Guest::open(path, &self.layout, self.coloring)).collect();
        let guests = guests?;
        if let Some(output) = learned {
            return learn::write(output, &guests);
        }
        let results = strategies::run_all(&guests, &hit_rates)?;
        let ksm = if self.ksm { Some(ksm::run(&guests, &results)?) } else { None };
        if let Some(output) = plot {
            output.write(|out| chart::draw(&results).write_png(out))?;
        }
        print(&match self.json {
            true => json::render(&guests, &results, ksm.as_ref()),
            false => table::render(&guests, &results, ksm.as_ref()),
        })
    }

    fn hit_rates(&self) -> Result<HitRates, Failure> {
        let Some(path) = &self.hit_rates_from else { return Ok(HitRates::shipped()) };
        let text = std::fs::read_to_string(path).map_err(|e| Failure::at(path, e))?;
        HitRates::parse(&text).map_err(|e| {
            Failure::at(path, e)
                .hint("--hit-rates-from takes what `kaleidoscope dedup --hit-rates-to` wrote")
        })
    }
}
