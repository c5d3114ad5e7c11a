//! Reads guests and the traces of their clones from folders.

use crate::analysis::{color_image_with, open_guest};
use crate::args::ColoringArgs;
use crate::failure::Failure;
use crate::map_output::table::printable;
use crate::replay::traces;
use kaleidoscope_core::coloring::Rules;
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::tune::TracedGuest;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A guest to tune on.
#[derive(Debug)]
pub(super) struct Guest {
    /// The folder's path as given, printable.
    pub(super) name: String,
    /// Release of the guest's kernel, printable.
    pub(super) kernel: String,
    pub(super) traced: TracedGuest,
}

impl Guest {
    /// Colors the guest in a folder, and reads `traces/*.csv` there.
    pub(super) fn read(folder: &Path, coloring: ColoringArgs) -> Result<Self, Failure> {
        let paths = trace_files(&folder.join("traces"))?;
        let (image, registers) = open_guest(folder)?;
        let analysis = color_image_with(coloring, &image, registers, Rules::default())?;
        let (map, kernel) = (analysis.coloring.map, analysis.kernel);
        let traces = traces::read(&paths, map.layout(), 1.0)?;
        let kernel = match kernel.release.as_str() {
            "" => "unknown".to_owned(),
            release => printable(release),
        };
        let traces = traces.into_iter().map(|named| named.trace).collect();
        let traced = TracedGuest { locality: Arc::new(LocalityOrder::new(map)), traces };
        Ok(Self { name: printable(&folder.display().to_string()), kernel, traced })
    }

    pub(super) fn traces(&self) -> usize {
        self.traced.traces.len()
    }
}

/// The traces in a folder, sorted by name.
fn trace_files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let hint =
        "a guest is a folder with ram.bin and traces/*.csv; `kaleidoscope lab trace` records some";
    let entries = std::fs::read_dir(folder).map_err(|e| Failure::at(folder, e).hint(hint))?;
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(|e| Failure::at(folder, e))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "csv"));
    paths.sort();
    if paths.is_empty() {
        return Err(Failure::at(folder, "there is no trace").hint(hint));
    }
    Ok(paths)
}
