//! `kaleidoscope demo`: a machine is snapshot while it runs, and clones of it start in every way
//! there is.

mod chart;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod machine;
mod mock;
mod report;
mod results;

use crate::failure::Failure;
use crate::map_output::outputs;
use crate::map_output::statistics::Statistics;
use crate::map_output::table;
use crate::outfile::{self, Files, Output, create_folder};
use crate::picture;
use crate::progress;
use crate::stdio::{print, say};
use report::Page;
use results::Contest;
use std::path::{Path, PathBuf};

/// Freeze a running machine, and watch clones of it start.
///
/// With KVM it boots a small guest whose processes check every byte that they own, warms it, and
/// freezes it while it runs on. It finds what every page is, from outside, and starts clones under
/// each policy: how soon they start, how often and how long they wait, what they move and take.
/// Without KVM it does so with mock machines.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope demo
      a table
  kaleidoscope demo -o demo --clones 8
      and a report with curves, and the picture of what every page is
  kaleidoscope demo --json | jq '.ways[] | {name, took_us, faults}'
      for programs")]
pub(crate) struct Args {
    /// Clones that run at once, for each policy
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=200))]
    clones: u16,
    /// Write colors.png and report.html into this folder
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Run mock machines even where there is KVM
    #[arg(long)]
    mock: bool,
    /// Print a JSON object instead of tables
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What is written.
    pub(crate) fn files(&self) -> Files {
        Files::new().writes_into(self.output.as_ref(), &["colors.png", "report.html"])
    }

    /// Runs the demonstration.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let _folder = self.output.as_deref().map(create_folder).transpose()?;
        let report = self.output.as_ref().map(|folder| Output::create(&folder.join("report.html")));
        let report = report.transpose()?;
        let contest = progress::during("demo", |status| self.contest(status))?;
        if let (Some(folder), Some(report)) = (&self.output, report) {
            write(folder, report, &contest)?;
        }
        if self.json {
            let text = serde_json::to_string_pretty(&contest.results).map_err(Failure::new)?;
            return print(&(text + "\n"));
        }
        let mut text = String::new();
        if let Some(map) = &contest.map {
            text.push_str(&table::heading(map));
            text.push('\n');
            text.push_str(&table::colors(&Statistics::of(map), outputs::shows_colors()));
            text.push('\n');
        }
        text.push_str(&contest.results.text());
        if let Some(folder) = &self.output {
            text.push_str(&format!("\nreport: {}\n", folder.join("report.html").display()));
        }
        print(&text)
    }

    fn contest(&self, status: &progress::Status) -> Result<Contest, Failure> {
        let clones = usize::from(self.clones);
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        if !self.mock {
            match kaleidoscope_kvm::machine::Host::open() {
                Ok(host) => {
                    return machine::contest(host, clones, status).map_err(|error| {
                        Failure::of(&*error).or_hint("--mock runs mock machines, without KVM")
                    });
                }
                Err(error) => say(format_args!("{error}: these are mock machines")),
            }
        }
        mock::contest(clones, status).map_err(|e| Failure::of(&*e))
    }
}

/// Writes the picture, and the report that shows it.
fn write(folder: &Path, report: Output, contest: &Contest) -> Result<(), Failure> {
    let mut picture = None;
    if let Some(map) = &contest.map {
        let canvas = picture::draw(map, &Statistics::of(map));
        outfile::write(&folder.join("colors.png"), |out| canvas.write_png(out))?;
        picture = Some("colors.png");
    }
    let page = Page { results: &contest.results, picture };
    let text = page.render().map_err(|e| Failure::at(report.path(), e))?;
    report.write(|out| out.write_all(text.as_bytes()))
}
