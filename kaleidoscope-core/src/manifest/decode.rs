//! Decodes a payload to a manifest.
//!
//! The payload is untrusted. Each map is scanned once to find its fields, and unknown fields are
//! skipped. Then the fields are decoded in the order of their dependencies, which need not be their
//! order in the file.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::cbor::Reader;
use super::columns::{Columns, Names, Palette};
use super::encode::CONTRADICTIONS;
use super::{ImageIdentity, Limits, Manifest, ManifestError};
use crate::addr::{FRAME_SIZE, FrameIndex, Gpa};
use crate::color::{Color, ColorMap, Frame, FrameKind, KernelIdentity, Order, Region, Temperature};
use crate::memory::MemoryLayout;

/// Maximum number of RAM regions, the limit of `MemoryLayout`.
const MAX_RAM_REGIONS: usize = 4096;

/// Maximum number of names in a list of the palette, whose numbers are bytes.
const MAX_NAMES: usize = 256;

/// Maximum bytes of a name of the palette.
const MAX_NAME_LEN: usize = 64;

/// Maximum number of notes, far more than coloring writes.
pub(super) const MAX_NOTES: u32 = 1 << 12;

/// Decodes the manifest in a payload.
pub(crate) fn payload(bytes: &[u8], limits: &Limits) -> Result<Manifest, ManifestError> {
    let mut reader = Reader::new(bytes);
    let keys = ["layout", "kernel", "palette", "regions", "frames", "identity", "notes"];
    let optional = [super::fingerprints::KEY, CONTRADICTIONS];
    let (needed, [fingerprints, contradictions]) =
        fields_and_optional(&mut reader, keys, optional)?;
    let [layout, kernel, palette, regions, frames, identity, notes] = needed;
    reader.finish()?;

    let at = |field, offset| Reader::at(bytes, field, offset);
    let mut text = TextBudget::new(limits);
    let layout = read_layout(&mut at("layout", layout), limits)?;
    let kernel = read_kernel(&mut at("kernel", kernel), &mut text)?;
    let palette = read_palette(&mut at("palette", palette))?;
    let frames_of_ram = layout.frames();
    let mut at_regions = at("regions", regions);
    let regions = read_regions(&mut at_regions, frames_of_ram, &palette, &mut text)?;
    let columns = read_columns(&mut at("frames", frames))?;
    let read = |offset| at(CONTRADICTIONS, offset).uint();
    let contradictions = contradictions.map(read).transpose()?.unwrap_or(0);
    let contradictions = u32::try_from(contradictions).unwrap_or(u32::MAX);
    let map =
        build(layout, kernel, regions, &columns, &palette)?.with_contradictions(contradictions);
    let identity = read_identity(&mut at("identity", identity))?;
    let notes = read_notes(&mut at("notes", notes), &mut text)?;
    let read = |offset| {
        super::fingerprints::read(&mut at(super::fingerprints::KEY, offset), frames_of_ram)
    };
    let fingerprints = fingerprints.map(read).transpose()?;
    Ok(Manifest { map, identity, notes, fingerprints })
}

/// Scans a map with text keys and returns the offsets of the values of `keys`. Other entries are
/// skipped.
pub(crate) fn fields<const N: usize>(
    reader: &mut Reader<'_>,
    keys: [&'static str; N],
) -> Result<[usize; N], ManifestError> {
    let (offsets, []) = fields_and_optional(reader, keys, [])?;
    Ok(offsets)
}

/// The same with additional keys that may be missing.
pub(crate) fn fields_and_optional<const N: usize, const M: usize>(
    reader: &mut Reader<'_>,
    keys: [&'static str; N],
    optional: [&'static str; M],
) -> Result<([usize; N], [Option<usize>; M]), ManifestError> {
    let (mut offsets, mut others) = ([None; N], [None; M]);
    for _ in 0..reader.map()? {
        let key = reader.text()?;
        let needed = keys.iter().zip(&mut offsets);
        let slot = needed.chain(optional.iter().zip(&mut others)).find(|(k, _)| **k == key);
        if let Some((_, offset)) = slot
            && offset.replace(reader.place()).is_some()
        {
            return Err(reader.error(format!("key `{key}` occurs twice")));
        }
        reader.skip()?;
    }
    let mut out = [0; N];
    for ((key, offset), out) in keys.iter().zip(offsets).zip(&mut out) {
        *out = offset.ok_or_else(|| reader.error(format!("key `{key}` is missing")))?;
    }
    Ok((out, others))
}

/// Tracks the bytes of text that a file may still hold.
pub(crate) struct TextBudget<'a> {
    limits: &'a Limits,
    left: u32,
}

impl<'a> TextBudget<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Self { limits, left: limits.max_text_total }
    }

    pub(crate) fn read(&mut self, reader: &mut Reader<'_>) -> Result<String, ManifestError> {
        let text = reader.text()?;
        let too_much = |what, limit: u32| ManifestError::Limit {
            what,
            found: u64::try_from(text.len()).unwrap_or(u64::MAX),
            limit: u64::from(limit),
        };
        let len = u32::try_from(text.len()).ok().filter(|&len| len <= self.limits.max_text);
        let len = len.ok_or_else(|| too_much("bytes in a text", self.limits.max_text))?;
        let left = self.left.checked_sub(len);
        self.left = left.ok_or_else(|| too_much("bytes in one more text", self.left))?;
        Ok(text.to_owned())
    }
}

pub(crate) fn read_layout(
    reader: &mut Reader<'_>,
    limits: &Limits,
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
        let limit = u64::from(limits.max_frames);
        if total > limit {
            return Err(ManifestError::Limit { what: "frames of RAM", found: total, limit });
        }
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

pub(crate) fn read_names<T: Copy>(
    reader: &mut Reader<'_>,
    find: impl Fn(&str) -> Option<T>,
) -> Result<Names<T>, ManifestError> {
    let count = reader.array()?;
    if count > MAX_NAMES {
        return Err(reader.error(format!("{count} names in a list of at most {MAX_NAMES}")));
    }
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        let name = reader.text()?;
        if name.len() > MAX_NAME_LEN {
            return Err(reader.error(format!("a name of {} bytes before it", name.len())));
        }
        names.push(name);
    }
    Ok(Names::new(&names, find))
}

/// Reads the regions, with the numbers of frames stated in the file.
fn read_regions(
    reader: &mut Reader<'_>,
    frames_of_ram: u32,
    palette: &Palette,
    text: &mut TextBudget<'_>,
) -> Result<Vec<Region>, ManifestError> {
    let count = reader.array()?;
    let (found, limit) = (u64::try_from(count).unwrap_or(u64::MAX), text.limits.max_regions);
    if found > u64::from(limit) {
        return Err(ManifestError::Limit { what: "regions", found, limit: u64::from(limit) });
    }
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

fn read_notes(
    reader: &mut Reader<'_>,
    text: &mut TextBudget<'_>,
) -> Result<Vec<String>, ManifestError> {
    let count = reader.array()?;
    let (found, limit) = (u64::try_from(count).unwrap_or(u64::MAX), u64::from(MAX_NOTES));
    if found > limit {
        return Err(ManifestError::Limit { what: "notes", found, limit });
    }
    (0..count).map(|_| text.read(reader)).collect()
}
