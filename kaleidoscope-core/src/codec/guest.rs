//! The parts of a file that say which guest it is about: RAM layout, kernel, image identity.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::cbor::{Reader, Writer};
use super::fields::fields;
use super::text::TextBudget;
use super::{ManifestError, within};
use crate::addr::{FRAME_SIZE, Gpa};
use crate::color::KernelIdentity;
use crate::identity::ImageIdentity;
use crate::memory::MemoryLayout;

/// Maximum number of RAM regions, the limit of `MemoryLayout`.
const MAX_RAM_REGIONS: usize = 4096;

/// Writes a RAM layout.
pub(crate) fn write_layout(out: &mut Writer, layout: &MemoryLayout) {
    let regions = layout.regions();
    out.array(regions.len());
    for region in regions {
        out.array(2);
        out.uint(region.start.0);
        out.uint(region.frames);
    }
}

/// Reads a RAM layout of at most `max_frames` frames.
pub(crate) fn read_layout(
    reader: &mut Reader<'_>,
    max_frames: u32,
) -> Result<MemoryLayout, ManifestError> {
    let count = reader.array()?;
    if count > MAX_RAM_REGIONS {
        return Err(reader.error(format!("{count} RAM regions")));
    }
    let mut regions = Vec::with_capacity(count);
    let mut total = 0u64;
    let mut end = None;
    for _ in 0..count {
        if reader.array()? != 2 {
            return Err(reader.error("a RAM region is an array of first frame and frames"));
        }
        let (start, frames) = (reader.uint()?, reader.uint()?);
        total = total.saturating_add(frames);
        within("frames of RAM", total, max_frames)?;
        let after = start.checked_add(frames);
        let (Some(gpa), Some(bytes), Some(after)) =
            (start.checked_mul(FRAME_SIZE), frames.checked_mul(FRAME_SIZE), after)
        else {
            return Err(reader.error("a RAM region past the address space"));
        };
        if end.replace(after).is_some_and(|end| start <= end) {
            return Err(reader.error("RAM regions must ascend and have gaps between them"));
        }
        regions.push((Gpa(gpa), bytes));
    }
    Ok(MemoryLayout::new(&regions)?)
}

/// Writes a kernel's identity.
pub(crate) fn write_kernel(out: &mut Writer, kernel: &KernelIdentity) {
    out.map(5);
    for (key, value) in [
        ("os", &kernel.os),
        ("banner", &kernel.banner),
        ("paging", &kernel.paging),
        ("release", &kernel.release),
        ("build_id", &kernel.build_id),
    ] {
        out.text(key);
        out.text(value);
    }
}

/// Reads a kernel's identity.
pub(crate) fn read_kernel(
    reader: &mut Reader<'_>,
    text: &mut TextBudget<'_>,
) -> Result<KernelIdentity, ManifestError> {
    let keys = ["os", "banner", "paging", "release", "build_id"];
    let [os, banner, paging, release, build_id] = fields(reader, keys)?;
    let mut at = |offset| text.read(&mut reader.moved_to(offset));
    Ok(KernelIdentity {
        os: at(os)?,
        release: at(release)?,
        banner: at(banner)?,
        build_id: at(build_id)?,
        paging: at(paging)?,
    })
}

/// Writes an image's identity.
pub(crate) fn write_identity(out: &mut Writer, identity: &ImageIdentity) {
    out.map(2);
    out.text("digest");
    out.bytes(&identity.digest);
    out.text("frames");
    out.uint(identity.frames);
}

/// Reads an image's identity.
pub(crate) fn read_identity(reader: &mut Reader<'_>) -> Result<ImageIdentity, ManifestError> {
    let [digest, frames] = fields(reader, ["digest", "frames"])?;
    let mut at_digest = reader.moved_to(digest);
    let digest = at_digest.bytes()?;
    let digest =
        digest.try_into().map_err(|_| at_digest.error("a digest is a string of 32 bytes"))?;
    let mut at_frames = reader.moved_to(frames);
    let frames = at_frames.uint()?;
    let frames = u32::try_from(frames).map_err(|_| at_frames.error(format!("{frames} frames")))?;
    Ok(ImageIdentity { digest, frames })
}
