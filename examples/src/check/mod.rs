//! `kaleidoscope check`: compares a coloring with the ground truth, the use of every frame as
//! reported by the guest's own kernel.
//!
//! The ground truth ([`truth`]) is a directory of `/proc` files that were captured in the guest.
//! The coloring ([`coloring`]) is made from the guest's image, or read from the two CSV files that
//! `kaleidoscope color` writes. Three comparisons ([`judge`]) cover the kind of every frame, the
//! file and page index of every cached file page, and the owner of every anonymous frame.
mod coloring;
mod error;
mod judge;
mod report;
#[cfg(test)]
mod tests;
mod truth;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) use error::Error;
pub(crate) use judge::frames::FrameFindings;

use crate::args::{ImageFormat, LayoutArgs};
use coloring::Coloring;
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::coloring::Rules;
use report::Report;
use truth::Truth;

/// Example frames that are shown for each kind of error.
const EXAMPLES: usize = 5;

/// Compare a coloring with what the guest's own kernel said of every frame.
///
/// Colors the image beside the truth (ram.bin with layout.txt and regs.txt), or judges the CSV
/// files of a coloring.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope check guests/web
      colors the image of a guest that `kaleidoscope lab run` made, and judges every frame
  kaleidoscope check guests/web --no-registers
      the same without the vCPUs' registers
  kaleidoscope check guests/web --frames-from frames.csv --regions-from regions.csv
      judges a coloring that `color --frames-to` and `--regions-to` wrote")]
pub(crate) struct Args {
    /// Directory of the guest; the truth is looked for in `truth/gt` and `gt` below it.
    guest_dir: PathBuf,
    /// CSV of frames to judge, from `color --frames-to`: gfn,kind,color,region,position.
    #[arg(long, value_name = "FILE.csv", requires = "regions_from")]
    frames_from: Option<PathBuf>,
    /// CSV of regions to judge, from `color --regions-to`: region,kind,name,frames.
    #[arg(long, value_name = "FILE.csv", requires = "frames_from")]
    regions_from: Option<PathBuf>,
    /// Color the image without the vCPUs' registers.
    #[arg(long, conflicts_with = "frames_from")]
    no_registers: bool,
    /// Directory of the truth, if it is not below GUEST_DIR.
    #[arg(long, value_name = "DIR")]
    truth: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Wrong frames that each class may have. A truth captured a moment before the image was taken
    /// differs from it.
    #[arg(long, value_name = "FRAMES", default_value_t = 0)]
    tolerance: u64,
    /// Example frames to show for each kind of mistake.
    #[arg(long, value_name = "N", default_value_t = EXAMPLES)]
    examples: usize,
}

/// Compares a coloring with `/proc/kpageflags`, read in the guest before and after the image was
/// taken. Both are run-length encoded as pairs of words: flags, and the number of consecutive
/// frames. Only frames with the same flags in both are judged.
///
/// A frame may also have changed and changed back in between. That does not happen to the same
/// frame repeatedly. A caller that finds wrong frames therefore takes another image and passes
/// these frames as `suspects`. Only they can be wrong then.
///
/// # Errors
/// If these are no pairs of words, or have more frames than the guest can have.
pub(crate) fn frames(
    [before, after]: [&[u8]; 2],
    map: &ColorMap,
    suspects: Option<&BTreeSet<u64>>,
) -> Result<FrameFindings, Error> {
    let truth = Truth::of_runs(before, after, map.layout().end_gfn().0)?;
    Ok(judge::frames::judge(&truth, &Coloring::from_map(map), EXAMPLES, suspects))
}

impl Args {
    /// Compares, prints the report, and returns the exit code for its verdict.
    pub(crate) fn run(&self) -> Result<ExitCode, Error> {
        let report = self.compare()?;
        let text = if self.json {
            serde_json::to_string_pretty(&report).map_err(Error::Json)?
        } else {
            report.to_string()
        };
        crate::stdio::print_line(text)?;
        Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn compare(&self) -> Result<Report, Error> {
        let directory = self.truth_dir()?;
        let truth = Truth::load(&directory)?;
        let coloring = match (&self.frames_from, &self.regions_from) {
            (Some(frames), Some(regions)) => Coloring::load(frames, regions)?,
            (None, _) | (_, None) => self.color_image(&directory)?,
        };
        Ok(Report::new(
            judge::frames::judge(&truth, &coloring, self.examples, None),
            judge::files::judge(&truth, &coloring, self.examples),
            judge::anonymous::judge(&truth, &coloring),
            coloring.defects(self.examples),
            self.tolerance,
        ))
    }

    /// Colors the image that belongs to the ground truth in `truth`: the one next to it, or else
    /// the guest's.
    fn color_image(&self, truth: &Path) -> Result<Coloring, Error> {
        let beside = truth.parent().filter(|dir| dir.join("ram.bin").is_file());
        let dir = beside.unwrap_or(&self.guest_dir);
        let layout = LayoutArgs { layout: Some(dir.join("layout.txt")), format: ImageFormat::Auto };
        let image = layout.open(&dir.join("ram.bin"))?;
        let file = Some(dir.join("regs.txt")).filter(|_| !self.no_registers);
        let registers = crate::analysis::registers(&image, file.as_deref())?;
        let analysis = crate::analysis::color_image(&image, registers, Rules::default())?;
        Ok(Coloring::from_map(&analysis.coloring.map))
    }

    fn truth_dir(&self) -> Result<PathBuf, Error> {
        let is_truth = |dir: &Path| dir.join(truth::KPAGEFLAGS).is_file();
        let candidates = match &self.truth {
            Some(dir) => vec![dir.clone()],
            None => vec![self.guest_dir.join("truth/gt"), self.guest_dir.join("gt")],
        };
        candidates.into_iter().find(|dir| is_truth(dir)).ok_or_else(|| Error::NoTruth {
            dir: self.truth.as_ref().unwrap_or(&self.guest_dir).clone(),
        })
    }
}
