//! Encodes a manifest as a payload.
//!
//! Map keys are written in ascending order of their encoding (shorter keys first), as deterministic
//! CBOR requires.

use super::columns;
use super::{ImageIdentity, Limits, Manifest, ManifestError};
use crate::codec::cbor::Writer;
use crate::codec::guest::{write_identity, write_kernel, write_layout};
use crate::codec::text::{check_texts, texts};
use crate::codec::{fingerprints, to_u64, within};
use crate::color::{Color, ColorMap, FrameKind, Order, Temperature};
use crate::fingerprint::Fingerprints;

/// Key of the number of contradictions, omitted if there are none.
pub(super) const CONTRADICTIONS: &str = "contradictions";

/// Key of whether free frames may be filled with zeros, omitted if not.
pub(super) const FREE_FRAMES_TRUSTED: &str = "free_frames_trusted";

/// Fails for manifests that a reader would reject: those beyond the limits of the format or of
/// [`Limits::for_frames`].
pub(crate) fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    let Manifest { map, notes, fingerprints, .. } = manifest;
    check_parts(map, notes)?;
    let frames = map.layout().frames();
    match fingerprints {
        Some(table) if table.frames() != frames => Err(ManifestError::Limit {
            what: "frames in the fingerprints of another guest",
            found: u64::from(table.frames()),
            limit: u64::from(frames),
        }),
        Some(_) | None => Ok(()),
    }
}

/// The same for a map and its notes.
pub(crate) fn check_parts(map: &ColorMap, notes: &[String]) -> Result<(), ManifestError> {
    let frames = map.layout().frames();
    Limits::default().admit_frames(frames)?;
    let limits = Limits::for_frames(frames);
    within("regions", to_u64(map.regions().len()), limits.max_regions)?;
    within("notes", to_u64(notes.len()), super::decode::MAX_NOTES)?;
    if let Some(anchor) = map.regions().iter().filter_map(|r| r.anchor).find(|a| a.0 >= frames) {
        let (found, limit) = (u64::from(anchor.0), u64::from(frames).saturating_sub(1));
        let what = "as the frame of a region's object";
        return Err(ManifestError::Limit { what, found, limit });
    }
    let kernel = map.kernel();
    let kernel =
        [&kernel.os, &kernel.release, &kernel.banner, &kernel.build_id, &kernel.paging].into_iter();
    let names = map.regions().iter().map(|region| &region.name);
    check_texts(kernel.chain(names).chain(notes).map(String::as_str), &limits.texts())
}

/// The CBOR map of a manifest.
pub(crate) fn payload(manifest: &Manifest) -> Vec<u8> {
    let Manifest { map, identity, notes, fingerprints } = manifest;
    parts(map, identity, notes, fingerprints.as_ref())
}

/// The CBOR map of a manifest with these parts.
pub(crate) fn parts(
    map: &ColorMap,
    identity: &ImageIdentity,
    notes: &[String],
    table: Option<&Fingerprints>,
) -> Vec<u8> {
    let mut out = Writer::default();
    let (contradictions, is_trusted) = (map.contradictions(), map.free_frames().is_claimed());
    let optional = [table.is_some(), contradictions > 0, is_trusted];
    out.map(7 + optional.into_iter().filter(|is_present| *is_present).count());
    out.text("notes");
    texts(&mut out, notes.iter().map(String::as_str));
    out.text("frames");
    frames(&mut out, map);
    out.text("kernel");
    write_kernel(&mut out, map.kernel());
    out.text("layout");
    write_layout(&mut out, map.layout());
    out.text("palette");
    palette(&mut out);
    out.text("regions");
    regions(&mut out, map);
    out.text("identity");
    write_identity(&mut out, identity);
    if let Some(table) = table {
        fingerprints::write(&mut out, table);
    }
    if contradictions > 0 {
        out.text(CONTRADICTIONS);
        out.uint(contradictions);
    }
    if is_trusted {
        out.text(FREE_FRAMES_TRUSTED);
        out.uint(1u8);
    }
    out.finish()
}

/// Writes the columns directly into the payload, so that a large guest needs no second copy of
/// them.
fn frames(out: &mut Writer, map: &ColorMap) {
    out.map(5);
    out.text("kind");
    out.bytes_of(map.len(), map.kinds().iter().map(|kind| [*kind as u8]));
    out.text("color");
    out.bytes_of(map.len(), map.colors().iter().map(|color| [*color as u8]));
    out.text("region");
    out.bytes_of(map.len(), map.region_numbers().iter().map(|region| region.to_le_bytes()));
    out.text("position");
    out.bytes_of(map.len(), columns::position_differences(map).map(u64::to_le_bytes));
    out.text("temperature");
    out.bytes_of(map.len(), map.temperatures().iter().map(|signs| [signs.bits()]));
}

fn palette(out: &mut Writer) {
    out.map(4);
    out.text("kinds");
    texts(out, FrameKind::ALL.into_iter().map(FrameKind::name));
    out.text("signs");
    texts(out, Temperature::NAMES.into_iter().map(|(_, name)| name));
    out.text("colors");
    texts(out, Color::ALL.into_iter().map(Color::name));
    out.text("orders");
    texts(out, Order::ALL.into_iter().map(Order::name));
}

fn regions(out: &mut Writer, map: &ColorMap) {
    out.array(map.regions().len());
    for region in map.regions() {
        out.array(if region.anchor.is_some() { 5 } else { 4 });
        out.uint(region.kind as u8);
        out.uint(region.order as u8);
        out.uint(region.frames);
        out.text(&region.name);
        if let Some(anchor) = region.anchor {
            out.uint(anchor.0);
        }
    }
}
