//! What all VMs of a handler start from: the memory file and its colors.

use crate::analysis::{Analysis, color_image};
use crate::failure::Failure;
use crate::map::explained;
use crate::outfile::Output;
use crate::replay::policies::{Guest, PolicyChoice, Prepared};
use kaleidoscope_core::clone::{FreeFrames, LocalSource};
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::coloring::Rules;
use kaleidoscope_core::image::MemoryImage;
use kaleidoscope_core::manifest::{ImageIdentity, Limits, Manifest};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::registers::VcpuRegisters;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What all VMs start from.
pub(super) struct Template {
    pub(super) image: Arc<MemoryImage>,
    pub(super) guest: Guest,
    pub(super) policy: Prepared,
    pub(super) free_frames: FreeFrames,
    /// Where the colors come from, for people.
    pub(super) colors: String,
    /// Whether there are colors.
    pub(super) is_colored: bool,
}

/// What a template is made of.
pub(super) struct TemplateArgs<'a> {
    /// The memory file.
    pub(super) memory: &'a Path,
    /// Where its colors are kept.
    pub(super) kept: PathBuf,
    /// The file of colors that the user names.
    pub(super) colors: Option<&'a Path>,
    pub(super) policy: &'a PolicyChoice,
    pub(super) fetch_free: bool,
}

/// A color map, its image's identity, and where it comes from.
pub(crate) struct Colors {
    map: ColorMap,
    identity: ImageIdentity,
    pub(crate) origin: String,
    is_colored: bool,
}

impl Template {
    /// Finds the colors of the memory file, which has been opened, or takes those that were found
    /// before.
    pub(super) fn of(image: MemoryImage, args: &TemplateArgs<'_>) -> Result<Self, Failure> {
        let colors = match args.colors {
            Some(path) => given(path, &image)?,
            None => match cached(&args.kept, &image) {
                Some(colors) => colors,
                None => found(args, &image)?,
            },
        };
        let image = Arc::new(image);
        let free_frames = if args.fetch_free || !colors.is_colored {
            FreeFrames::Fetch
        } else {
            FreeFrames::Auto.for_source(&colors.map, &LocalSource::new(image.clone()))
        };
        // What was found in a file that changed meanwhile may be of two times.
        image.check_unchanged().map_err(Failure::new)?;
        let guest =
            Guest { locality: Arc::new(LocalityOrder::new(colors.map)), identity: colors.identity };
        Ok(Self {
            policy: args.policy.prepare(&guest)?,
            image,
            guest,
            free_frames,
            colors: colors.origin,
            is_colored: colors.is_colored,
        })
    }
}

/// Beside a memory file: where its colors are kept unless its folder has a place for them.
pub(super) fn beside(memory: &Path) -> PathBuf {
    let mut name = OsString::from(memory);
    name.push(".kscope");
    name.into()
}

/// The map in a file that the user names, which has to be of this image.
fn given(path: &Path, image: &MemoryImage) -> Result<Colors, Failure> {
    let limits = Limits::for_frames(image.layout().frames());
    let mut manifest =
        Manifest::read_file(path, &limits).map_err(|error| explained(path, &error))?;
    manifest.verify(image).map_err(|error| {
        Failure::at(path, error)
            .hint("the colors are another memory file's: leave out --colors to find this one's")
    })?;
    Ok(of(manifest, format!("of {}", path.display())))
}

/// The map that an earlier run has kept, if it is of this image.
fn cached(path: &Path, image: &MemoryImage) -> Option<Colors> {
    let limits = Limits::for_frames(image.layout().frames());
    let mut manifest = Manifest::read_file(path, &limits).ok()?;
    manifest.verify(image).ok()?;
    Some(of(manifest, format!("kept in {}", path.display())))
}

fn of(manifest: Manifest, origin: String) -> Colors {
    Colors { map: manifest.map, identity: manifest.identity, origin, is_colored: true }
}

/// Colors the image and keeps the map. A guest that cannot be colored is served all the same.
fn found(args: &TemplateArgs<'_>, image: &MemoryImage) -> Result<Colors, Failure> {
    color(image, image.vcpus().to_vec(), &args.kept).or_else(|failure| {
        let map = ColorMap::unknown(image.layout().clone());
        let identity =
            ImageIdentity::of(image, &map).map_err(|error| Failure::at(args.memory, error))?;
        let origin = format!("none, prefetch goes by frame numbers: {}", failure.cause());
        Ok(Colors { map, identity, origin, is_colored: false })
    })
}

/// Colors an image, and keeps the map in the file `kept` if that can be written.
pub(crate) fn color(
    image: &MemoryImage,
    vcpus: Vec<VcpuRegisters>,
    kept: &Path,
) -> Result<Colors, Failure> {
    let start = Instant::now();
    let Analysis { coloring, notes, .. } = color_image(image, vcpus, Rules::default())?;
    let map = coloring.map;
    let ms = start.elapsed().as_millis();
    let identity = ImageIdentity::of(image, &map).map_err(Failure::new)?;
    // Those of an image that changed meanwhile would be kept for another one.
    image.check_unchanged().map_err(Failure::new)?;
    let mut manifest = Manifest::new(map.clone(), identity);
    manifest.notes = notes;
    let origin = match keep(&manifest, kept) {
        Ok(()) => format!("found in {ms} ms"),
        Err(failure) => format!("found in {ms} ms, not kept: {}", failure.cause()),
    };
    Ok(Colors { map, identity, origin, is_colored: true })
}

fn keep(manifest: &Manifest, path: &Path) -> Result<(), Failure> {
    let bytes = manifest.to_bytes().map_err(|error| Failure::at(path, error))?;
    Output::lasting(path)?.write(|out| out.write_all(&bytes))
}
