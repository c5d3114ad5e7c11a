//! Decodes a payload to a manifest.
//!
//! The payload is untrusted: unknown numbers, sizes beyond the limits and contradictions are errors.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::columns::{Columns, Palette};
use super::encode::{CONTRADICTIONS, FREE_FRAMES_TRUSTED};
use super::{Limits, Manifest, ManifestError};
use crate::addr::FrameIndex;
use crate::codec::cbor::Reader;
use crate::codec::fields::{fields, fields_and_optional};
use crate::codec::guest::{read_identity, read_kernel, read_layout};
use crate::codec::names::read_names;
use crate::codec::text::TextBudget;
use crate::codec::{fingerprints, to_u64, within};
use crate::color::{
    Color, ColorMap, Frame, FrameKind, FreeFrameTrust, KernelIdentity, Order, Region, Temperature,
};
use crate::memory::MemoryLayout;

/// Maximum number of notes, far more than coloring writes.
pub(super) const MAX_NOTES: u32 = 1 << 12;

/// Decodes the manifest in a payload.
pub(crate) fn payload(bytes: &[u8], limits: &Limits) -> Result<Manifest, ManifestError> {
    let mut reader = Reader::new(bytes);
    let keys = ["layout", "kernel", "palette", "regions", "frames", "identity", "notes"];
    let optional = [fingerprints::KEY, CONTRADICTIONS, FREE_FRAMES_TRUSTED];
    let (needed, optional) = fields_and_optional(&mut reader, keys, optional)?;
    let [table, contradictions, trusted] = optional;
    let [layout, kernel, palette, regions, frames, identity, notes] = needed;
    reader.finish()?;

    let at = |field, offset| Reader::at(bytes, field, offset);
    let texts = limits.texts();
    let mut text = TextBudget::new(&texts);
    let layout = read_layout(&mut at("layout", layout), limits.max_frames)?;
    let kernel = read_kernel(&mut at("kernel", kernel), &mut text)?;
    let palette = read_palette(&mut at("palette", palette))?;
    let frames_of_ram = layout.frames();
    let mut at_regions = at("regions", regions);
    let max_regions = limits.max_regions;
    let regions = read_regions(&mut at_regions, frames_of_ram, max_regions, &palette, &mut text)?;
    let columns = read_columns(&mut at("frames", frames))?;
    let read = |offset| at(CONTRADICTIONS, offset).uint();
    let contradictions = contradictions.map(read).transpose()?.unwrap_or(0);
    let contradictions = u32::try_from(contradictions).unwrap_or(u32::MAX);
    let read = |offset| at(FREE_FRAMES_TRUSTED, offset).uint();
    let is_claimed = trusted.map(read).transpose()? == Some(1);
    let map = build(layout, kernel, regions, &columns, &palette)?
        .with_contradictions(contradictions)
        // A claim about the image, which `Manifest::verify` compares with what is at hand.
        .with_free_frames(FreeFrameTrust::claimed(is_claimed));
    let identity = read_identity(&mut at("identity", identity))?;
    let notes = read_notes(&mut at("notes", notes), &mut text)?;
    let read = |offset| fingerprints::read(&mut at(fingerprints::KEY, offset), frames_of_ram);
    let fingerprints = table.map(read).transpose()?;
    Ok(Manifest { map, identity, notes, fingerprints })
}

fn read_palette(reader: &mut Reader<'_>) -> Result<Palette, ManifestError> {
    let [kinds, colors, orders, signs] = fields(reader, ["kinds", "colors", "orders", "signs"])?;
    let sign = |name: &str| Temperature::NAMES.iter().find(|n| n.1 == name).map(|n| n.0);
    let order = |name: &str| Order::ALL.into_iter().find(|o| o.name() == name);
    Ok(Palette {
        kinds: read_names(&mut reader.moved_to(kinds), |n| n.parse::<FrameKind>().ok())?,
        colors: read_names(&mut reader.moved_to(colors), |n| n.parse::<Color>().ok())?,
        orders: read_names(&mut reader.moved_to(orders), order)?,
        signs: read_names(&mut reader.moved_to(signs), sign)?,
    })
}

/// Reads the regions, with the numbers of frames stated in the file.
fn read_regions(
    reader: &mut Reader<'_>,
    frames_of_ram: u32,
    max_regions: u32,
    palette: &Palette,
    text: &mut TextBudget<'_>,
) -> Result<Vec<Region>, ManifestError> {
    let count = reader.array()?;
    within("regions", to_u64(count), max_regions)?;
    let mut regions = Vec::with_capacity(count);
    for _ in 0..count {
        let items = reader.array()?;
        let Some(more) = items.checked_sub(4) else {
            return Err(reader.error("a region is an array of kind, order, frames and name"));
        };
        let (kind, order, frames) = (reader.uint()?, reader.uint()?, reader.uint()?);
        let number = |n| u8::try_from(n).map_err(|_| format!("number {n} is not in the palette"));
        let wrong = |problem: String| reader.error(problem);
        let kind = number(kind).and_then(|n| palette.kinds.get(n)).map_err(wrong)?;
        let order = number(order).and_then(|n| palette.orders.get(n)).map_err(wrong)?;
        let frames = u32::try_from(frames).map_err(|_| wrong(format!("{frames} frames")))?;
        let name = text.read(reader)?;
        let anchor = match more {
            0 => None,
            _ => Some(read_anchor(reader, frames_of_ram)?),
        };
        for _ in 1..more {
            reader.skip()?;
        }
        regions.push(Region { frames, anchor, ..Region::new(kind, order, name) });
    }
    Ok(regions)
}

fn read_anchor(reader: &mut Reader<'_>, frames_of_ram: u32) -> Result<FrameIndex, ManifestError> {
    let before = reader.moved_to(reader.place());
    let frame = reader.uint()?;
    let index = u32::try_from(frame).ok().filter(|&index| index < frames_of_ram).map(FrameIndex);
    index.ok_or_else(|| {
        before.error(format!("a region's object in frame {frame} of {frames_of_ram} frames"))
    })
}

fn read_columns<'a>(reader: &mut Reader<'a>) -> Result<Columns<&'a [u8]>, ManifestError> {
    let keys = ["kind", "color", "region", "position", "temperature"];
    let [kind, color, region, position, temperature] = fields(reader, keys)?;
    Ok(Columns {
        kind: reader.moved_to(kind).bytes()?,
        color: reader.moved_to(color).bytes()?,
        temperature: reader.moved_to(temperature).bytes()?,
        region: reader.moved_to(region).bytes()?,
        position: reader.moved_to(position).bytes()?,
    })
}

fn build(
    layout: MemoryLayout,
    kernel: KernelIdentity,
    regions: Vec<Region>,
    columns: &Columns<&[u8]>,
    palette: &Palette,
) -> Result<ColorMap, ManifestError> {
    let stated: Vec<u32> = regions.iter().map(|r| r.frames).collect();
    let mut failure = None;
    let frames = columns.frames(layout.frames() as usize, regions.len(), palette)?;
    let frames = frames.map_while(|frame: Result<Frame, _>| match frame {
        Ok(frame) => Some(frame),
        Err(error) => {
            failure = Some(error);
            None
        }
    });
    let map = ColorMap::new(layout, kernel, frames, regions);
    if let Some(error) = failure {
        return Err(error);
    }
    let map = map?;
    for (index, (region, stated)) in map.regions().iter().zip(stated).enumerate() {
        if region.frames != stated {
            let counted = region.frames;
            return Err(ManifestError::RegionFrames { region: index, stated, counted });
        }
    }
    Ok(map)
}

fn read_notes(
    reader: &mut Reader<'_>,
    text: &mut TextBudget<'_>,
) -> Result<Vec<String>, ManifestError> {
    let count = reader.array()?;
    within("notes", to_u64(count), MAX_NOTES)?;
    (0..count).map(|_| text.read(reader)).collect()
}
