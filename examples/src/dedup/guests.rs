//! The guests: their memory, their colors, and the frames that their clones write to.

use crate::analysis::{color_image_with, registers};
use crate::args::{ColoringArgs, ImageFormat, LayoutArgs};
use crate::failure::Failure;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::coloring::Rules;
use kaleidoscope_core::dedup::BuildIds;
use kaleidoscope_core::image::MemoryImage;
use kaleidoscope_core::manifest::{Limits, Manifest};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::replay::written_frames;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A guest.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) name: String,
    pub(super) image: MemoryImage,
    pub(super) locality: Arc<LocalityOrder>,
    /// The workload whose written frames count as diverged, if there are traces next to the image.
    pub(super) workload: Option<Workload>,
}

/// The frames that a clone wrote to.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) name: String,
    is_written: Vec<bool>,
}

impl Guest {
    /// Opens and colors an image, or the guest in a folder with `ram.bin`.
    pub(super) fn open(
        path: &Path,
        layout: &LayoutArgs,
        coloring: ColoringArgs,
    ) -> Result<Self, Failure> {
        let image_path = if path.is_dir() { path.join("ram.bin") } else { path.to_owned() };
        let folder = image_path.parent().unwrap_or(Path::new(""));
        let beside = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let is_told = layout.layout.is_some() || layout.format != ImageFormat::Auto;
        let found = if is_told { layout.layout.clone() } else { beside("layout.txt") };
        let image = LayoutArgs { layout: found, format: layout.format };
        let image = image.open(&image_path).map_err(|failure| match path.is_dir() {
            true => failure.hint(
                "a guest is a folder with ram.bin, and with layout.txt unless the image contains \
                 its layout",
            ),
            false => failure,
        })?;
        let map = map(&image, &image_path, beside("regs.txt").as_deref(), coloring)?;
        let workload = workload(&folder.join("traces"), &image, &map)?;
        let locality = Arc::new(LocalityOrder::new(map));
        Ok(Self { name: name(path), image, locality, workload })
    }

    /// Reads the build ids of the guest's files.
    pub(super) fn build_ids(&self) -> Result<BuildIds, Failure> {
        BuildIds::read(&self.image, &self.locality)
            .map_err(|e| Failure::new(format_args!("{}: {e}", self.name)))
    }

    /// Whether the workload writes to a frame.
    pub(super) fn is_written(&self, frame: FrameIndex) -> bool {
        let written = self.workload.as_ref().and_then(|w| w.is_written.get(frame.as_usize()));
        written.copied().unwrap_or(false)
    }
}

/// The map in the manifest beside the image, if there is one, or else what coloring finds.
fn map(
    image: &MemoryImage,
    path: &Path,
    regs: Option<&Path>,
    coloring: ColoringArgs,
) -> Result<ColorMap, Failure> {
    let manifest = path.with_extension("kscope");
    if coloring.page_tables || !manifest.is_file() {
        let registers = registers(image, regs)?;
        let analysis = color_image_with(coloring, image, registers, Rules::default())?;
        return Ok(analysis.coloring.map);
    }
    let limits = Limits::for_frames(image.layout().frames());
    let read = Manifest::read_file(&manifest, &limits).map_err(|e| Failure::at(&manifest, e));
    let verified = read.and_then(|mut read| match read.verify(image) {
        Ok(()) => Ok(read.map),
        Err(error) => Err(Failure::at(&manifest, error)),
    });
    verified.map_err(|failure| {
        failure.hint(
            "a manifest next to an image is used instead of coloring it: remove it or make it \
             again (kaleidoscope color -o)",
        )
    })
}

/// The trace in a folder that writes to the most frames that are not free.
fn workload(
    folder: &Path,
    image: &MemoryImage,
    map: &ColorMap,
) -> Result<Option<Workload>, Failure> {
    let Ok(entries) = folder.read_dir() else { return Ok(None) };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "csv"))
        .collect();
    paths.sort();
    let mut most: Option<(usize, Workload)> = None;
    for path in paths {
        let file = File::open(&path).map_err(|e| Failure::at(&path, e))?;
        let frames = written_frames(BufReader::new(file), image.layout()).map_err(|e| {
            Failure::at(&path, e).hint(
                "traces/*.csv next to an image must be traces of its clones: move others away",
            )
        })?;
        let mut is_written = vec![false; map.len()];
        let mut count = 0usize;
        for frame in frames {
            let color = map.colors().get(frame.as_usize()).copied().unwrap_or_default();
            if let Some(slot) = is_written.get_mut(frame.as_usize()) {
                *slot = true;
                count += usize::from(!is_free(color));
            }
        }
        if most.as_ref().is_none_or(|(before, _)| count > *before) {
            most = Some((count, Workload { name: name(&path), is_written }));
        }
    }
    Ok(most.map(|(_, workload)| workload))
}

fn is_free(color: kaleidoscope_core::color::Color) -> bool {
    color.paper() == kaleidoscope_core::color::PaperColor::Free
}

/// A guest's name: the file's stem, or the folder's name for `ram.*`.
fn name(path: &Path) -> String {
    let folder = path.is_dir();
    let stem = if folder { path.file_name() } else { path.file_stem() };
    let stem = stem.unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    match path.parent().and_then(Path::file_name) {
        Some(parent) if !folder && stem == "ram" => parent.to_string_lossy().into_owned(),
        _ => stem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_guest() {
        let dir = tempfile::tempdir().unwrap();
        let guest = dir.path().join("sql-6.1");
        std::fs::create_dir(&guest).unwrap();
        assert_eq!(name(&guest), "sql-6.1");
        assert_eq!(name(&guest.join("ram.bin")), "sql-6.1");
        assert_eq!(name(Path::new("web.core")), "web");
    }

    #[test]
    fn a_folder_without_an_image_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let layout = LayoutArgs { layout: None, format: ImageFormat::Auto };
        let failure =
            Guest::open(dir.path(), &layout, ColoringArgs::default()).unwrap_err().to_string();
        assert!(failure.contains("ram.bin") && failure.contains("hint: "), "{failure}");
    }
}
