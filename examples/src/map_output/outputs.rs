//! What `color` and `map` can do with a color map.

use super::{csv, json, table};
use crate::failure::Failure;
use crate::map_output::statistics::Statistics;
use crate::outfile::{Output, create_if};
use crate::picture;
use crate::stdio::print;
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::guest_os::Process;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

/// What to show and to write.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct OutputArgs {
    /// List cached files with their resident pages
    #[arg(long)]
    pub(crate) files: bool,
    /// Draw the map: one pixel per frame, along a Hilbert curve, with a legend
    #[arg(long, value_name = "FILE.png")]
    pub(crate) plot: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a CSV of frames: gfn,kind,color,region,position
    #[arg(long, value_name = "FILE.csv")]
    pub(crate) frames_to: Option<PathBuf>,
    /// Write a CSV of regions: region,kind,name,frames
    #[arg(long, value_name = "FILE.csv")]
    pub(crate) regions_to: Option<PathBuf>,
}

/// Everything there is to show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// What every frame is.
    pub(crate) map: &'a ColorMap,
    /// What was damaged or cut.
    pub(crate) notes: &'a [String],
    /// How long each stage took; empty when nothing was colored.
    pub(crate) stages: &'a [(&'static str, Duration)],
    /// The guest's processes, if they are to be shown.
    pub(crate) processes: Option<&'a [Process]>,
}

/// The files of [`OutputArgs`], which are written when there is something to show.
#[derive(Debug)]
pub(crate) struct OutputFiles {
    frames: Option<Output>,
    regions: Option<Output>,
    plot: Option<Output>,
}

impl OutputArgs {
    /// The files that are asked for.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.frames_to, &self.regions_to, &self.plot].into_iter().flatten()
    }

    /// Begins the files.
    pub(crate) fn create(&self) -> Result<OutputFiles, Failure> {
        Ok(OutputFiles {
            frames: create_if(self.frames_to.as_ref())?,
            regions: create_if(self.regions_to.as_ref())?,
            plot: create_if(self.plot.as_ref())?,
        })
    }

    /// Writes the files and prints the tables or the JSON object.
    pub(crate) fn emit(&self, files: OutputFiles, view: &View<'_>) -> Result<(), Failure> {
        let statistics = Statistics::of(view.map);
        if let Some(file) = files.frames {
            file.write(|out| csv::write_frames(view.map, out))?;
        }
        if let Some(file) = files.regions {
            file.write(|out| csv::write_regions(view.map, out))?;
        }
        if let Some(file) = files.plot {
            file.write(|out| picture::draw(view.map, &statistics).write_png(out))?;
        }
        print(&if self.json {
            json::render(view, &statistics, self.files)
        } else {
            table::render(view, &statistics, self.files, shows_colors())
        })
    }
}

/// Whether standard output shows colors: a terminal, unless the user objects (<https://no-color.org>).
pub(crate) fn shows_colors() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
