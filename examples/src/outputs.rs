//! What `color` and `map` can do with a color map.

use crate::failure::{Failure, print};
use crate::statistics::Statistics;
use crate::{csv_out, json, picture, table};
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::guest_os::Process;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to show and to write.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct OutputArgs {
    /// List cached files with their resident pages
    #[arg(long)]
    pub(crate) files: bool,
    /// Draw the map: one pixel per frame, along a Hilbert curve, with a legend
    #[arg(long, value_name = "FILE")]
    pub(crate) png: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a CSV of frames: gfn,kind,color,region,position
    #[arg(long, value_name = "FILE")]
    pub(crate) frames: Option<PathBuf>,
    /// Write a CSV of regions: region,kind,name,frames
    #[arg(long, value_name = "FILE")]
    pub(crate) regions: Option<PathBuf>,
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

impl OutputArgs {
    /// Writes the files and prints the tables or the JSON object.
    pub(crate) fn emit(&self, view: &View<'_>) -> Result<(), Failure> {
        let statistics = Statistics::of(view.map);
        if let Some(path) = &self.frames {
            write(path, |file| csv_out::write_frames(view.map, file))?;
        }
        if let Some(path) = &self.regions {
            write(path, |file| csv_out::write_regions(view.map, file))?;
        }
        if let Some(path) = &self.png {
            write(path, |file| picture::draw(view.map, &statistics).write_png(file))?;
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

/// Creates a file and writes it.
pub(crate) fn write(
    path: &Path,
    content: impl FnOnce(File) -> io::Result<()>,
) -> Result<(), Failure> {
    let written = File::create(path).and_then(content);
    written.map_err(|e| Failure::at(path, format_args!("cannot be written: {e}")))
}
