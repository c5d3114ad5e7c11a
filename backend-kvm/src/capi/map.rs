//! Color maps, opened from manifests.

#![expect(unsafe_code, reason = "C calls these functions and passes pointers")]

use super::Color;
use super::failure::{Failure, Status, call};
use super::pointers;
use kaleidoscope_core::addr::{FRAME_SIZE, FrameIndex, Gfn};

use kaleidoscope_core::image::{Format, LayoutFile, MemoryImage, RawLayout};
use kaleidoscope_core::manifest::{IdentityError, Limits, Manifest};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::prefetch::LocalityOrder;
use std::ffi::c_char;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// The colors of a guest's frames and, if a memory file was given, the frames' bytes.
#[derive(Debug)]
pub struct Map {
    pub(super) locality: Arc<LocalityOrder>,
    pub(super) image: Option<Arc<MemoryImage>>,
}

impl Map {
    fn open(manifest: &Path, memory: Option<&Path>) -> Result<Self, Failure> {
        let unreadable = |path: &Path, error: &dyn std::error::Error| {
            Failure::new(Status::Unreadable, format_args!("{}: {error}", path.display()))
        };
        let mut read = Manifest::read_file(manifest, &Limits::default())
            .map_err(|error| unreadable(manifest, &error))?;
        let image = match memory {
            None => None,
            Some(path) => {
                let format = format_of(path, read.map.layout())
                    .map_err(|error| unreadable(path, &*error))?;
                let image =
                    MemoryImage::open(path, &format).map_err(|error| unreadable(path, &error))?;
                read.verify(&image).map_err(|error| match error {
                    IdentityError::Layout { .. } | IdentityError::Digest { .. } => {
                        Failure::new(Status::Mismatch, error)
                    }
                    error @ (IdentityError::Memory(_) | _) => unreadable(path, &error),
                })?;
                Some(Arc::new(image))
            }
        };
        Ok(Self { locality: read.map.into(), image })
    }

    /// The index of a frame that is RAM.
    pub(super) fn index_of(locality: &LocalityOrder, gfn: u64) -> Result<FrameIndex, Failure> {
        locality.layout().index_of(Gfn(gfn)).ok_or_else(|| {
            let message = format_args!("the guest has no RAM at frame {gfn:#x}");
            Failure::new(Status::NoSuchFrame, message)
        })
    }
}

/// The format of a memory file: ELF by its first bytes, or else the RAM of this layout in the order
/// of guest-physical addresses, without the holes between.
fn format_of(path: &Path, layout: &MemoryLayout) -> Result<Format, Box<dyn std::error::Error>> {
    let mut start = Vec::new();
    // Opening a pipe would wait for a writer; the image's own opening refuses one.
    if std::fs::metadata(path)?.is_file() {
        std::fs::File::open(path)?.take(4).read_to_end(&mut start)?;
    }
    if start == b"\x7fELF" {
        return Ok(Format::Elf);
    }
    let mut text = String::new();
    for region in layout.regions() {
        let [offset, gpa, bytes] =
            [u64::from(region.first_index.0), region.start.0, u64::from(region.frames)]
                .map(|frames| frames.saturating_mul(FRAME_SIZE));
        writeln!(text, "{offset:#x} {gpa:#x} {bytes:#x}")?;
    }
    Ok(Format::Raw(RawLayout::File(text.parse::<LayoutFile>()?)))
}

/// Opens a manifest, which `kaleidoscope color -o FILE` writes.
///
/// `memory` is the memory file that the manifest was made from, or null. It is an ELF dump, or
/// holds the guest's RAM in the order of guest-physical addresses without the holes between. The
/// manifest is verified against it (`KALEIDOSCOPE_STATUS_MISMATCH` if it is of another snapshot). A
/// session needs it. The file must not change while it is in use.
///
/// # Safety
/// Strings end with NUL. `map` is where the result goes; free it with `kaleidoscope_map_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_map_open(
    manifest: *const c_char,
    memory: *const c_char,
    map: *mut *mut Map,
) -> Status {
    call(|| {
        // SAFETY: the caller promises that it is null or a place for a pointer.
        let map = unsafe { pointers::out(map, "map") }?;
        // SAFETY: the caller promises that it is null or a string.
        let manifest = unsafe { pointers::path(manifest) };
        // SAFETY: as above.
        let memory = unsafe { pointers::path(memory) };
        let manifest = manifest.ok_or_else(|| Failure::argument("`manifest` is null"))?;
        pointers::give(map, Map::open(manifest, memory)?);
        Ok(())
    })
}

/// The number of the guest's frames (4096 bytes each).
///
/// # Safety
/// `map` is from `kaleidoscope_map_open`; `frames` is where the result goes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_map_frames(map: *const Map, frames: *mut u32) -> Status {
    call(|| {
        // SAFETY: the caller promises that it is null or a map that is not freed yet.
        let map = unsafe { pointers::borrow(map, "map") }?;
        // SAFETY: the caller promises that it is null or a place for the result.
        let frames = unsafe { pointers::out(frames, "frames") }?;
        frames.write(map.locality.frames());
        Ok(())
    })
}

/// The color of the frame with the guest-physical frame number `gfn` (the guest-physical address
/// divided by 4096). `KALEIDOSCOPE_STATUS_NO_SUCH_FRAME` if the guest has no RAM there.
///
/// # Safety
/// `map` is from `kaleidoscope_map_open`; `color` is where the result goes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_map_color(
    map: *const Map,
    gfn: u64,
    color: *mut Color,
) -> Status {
    call(|| {
        // SAFETY: the caller promises that it is null or a map that is not freed yet.
        let map = unsafe { pointers::borrow(map, "map") }?;
        // SAFETY: the caller promises that it is null or a place for the result.
        let color = unsafe { pointers::out(color, "color") }?;
        let frame = Map::index_of(&map.locality, gfn)?;
        color.write(map.locality.color(frame).into());
        Ok(())
    })
}

/// Frees a map. Null is allowed. Policies and sessions that were made from it live on.
///
/// # Safety
/// `map` is null or from `kaleidoscope_map_open`, no other call uses it, and none will.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_map_free(map: *mut Map) {
    call(|| {
        // SAFETY: the caller promises that it is null, or a map that is freed here only.
        unsafe { pointers::free(map) };
        Ok(())
    });
}
