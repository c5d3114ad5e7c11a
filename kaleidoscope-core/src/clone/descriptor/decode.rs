//! Decodes a payload into its descriptor.
//!
//! The payload is hostile, as a manifest's is, and handled in the same way.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::encode::HOLES;
use super::limits::{MAX_ADDRESS, MAX_HOLES, MAX_SERVERS};
use super::{Descriptor, DescriptorError, DescriptorLimits, Template, instant};
use crate::clone::{CloneId, FreeFrames, ServerAddress};
use crate::codec::cbor::Reader;
use crate::codec::fields::fields_and_optional;
use crate::codec::guest::{read_identity, read_layout};
use crate::codec::{ManifestError, fingerprints, to_u64, within};
use crate::manifest::Manifest;
use crate::manifest::decode::payload as manifest;
use crate::memory::SnapshotId;
use crate::prefetch::LocalityOrder;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

/// Decodes a payload.
pub(super) fn payload(
    bytes: &[u8],
    limits: &DescriptorLimits,
) -> Result<Descriptor, DescriptorError> {
    let mut reader = Reader::new(bytes);
    let keys = ["id", "state", "colors", "frozen", "layout", "servers", "identity", "free_frames"];
    let optional = [fingerprints::KEY, HOLES];
    let (needed, [table, holes]) = fields_and_optional(&mut reader, keys, optional)?;
    let [id, state, colors, frozen, layout, servers, identity, free_frames] = needed;
    reader.finish()?;

    let at = |field, place| Reader::at(bytes, field, place);
    let id = read_id(&mut at("id", id))?;
    let frozen_at = read_frozen(&mut at("frozen", frozen))?;
    let servers = read_servers(&mut at("servers", servers))?;
    let free_frames = read_free_frames(&mut at("free_frames", free_frames))?;
    let identity = read_identity(&mut at("identity", identity))?;
    let layout = read_layout(&mut at("layout", layout), limits.manifest.max_frames)?;
    let state = at("state", state).bytes()?;
    within("bytes of device state", to_u64(state.len()), to_u64(limits.max_state()))?;

    let mut template = Template::new(layout, identity);
    let mut at_colors = at("colors", colors);
    // Fingerprints inside the color map are never written, and are ignored: a descriptor has its
    // own.
    if let Some(Manifest { map, identity, notes, .. }) = read_colors(&mut at_colors, limits)? {
        if *map.layout() != template.layout {
            return Err(at_colors.error("the color map before it has another layout").into());
        }
        if identity != template.identity {
            return Err(at_colors.error("the color map before it is of another image").into());
        }
        // The server decided, whatever the coloring found.
        let decided = (free_frames == FreeFrames::Zero)
            .then(|| SnapshotId::of_image(template.identity.digest));
        let trust = map.free_frames().decided(decided);
        let map = map.with_free_frames(trust);
        template.is_colored = true;
        template.notes = notes;
        template.locality = Arc::new(LocalityOrder::new(map)).into();
    }
    if let Some(place) = table {
        let frames = template.layout.frames();
        let table = fingerprints::read(&mut at(fingerprints::KEY, place), frames)?;
        template.fingerprints = Some(Arc::new(table));
    }
    if let Some(place) = holes {
        template.holes = read_holes(&mut at(HOLES, place), template.layout.frames())?;
    }
    let template = Template { frozen_at, state: state.to_vec(), servers, free_frames, ..template };
    Ok(Descriptor { id, template: Arc::new(template) })
}

fn read_id(reader: &mut Reader<'_>) -> Result<CloneId, ManifestError> {
    let id = reader.bytes()?;
    id.try_into().map(CloneId).map_err(|_| reader.error("an id is a string of 16 bytes"))
}

fn read_colors(
    reader: &mut Reader<'_>,
    limits: &DescriptorLimits,
) -> Result<Option<Manifest>, DescriptorError> {
    let bytes = reader.bytes()?;
    if bytes.is_empty() {
        return Ok(None);
    }
    manifest(bytes, &limits.manifest).map(Some).map_err(DescriptorError::Colors)
}

fn read_frozen(reader: &mut Reader<'_>) -> Result<Option<SystemTime>, ManifestError> {
    match reader.array()? {
        0 => Ok(None),
        1 => {
            let before = reader.moved_to(reader.place());
            let micros = reader.uint()?;
            let at = instant(micros);
            at.map(Some).ok_or_else(|| before.error(format!("{micros} microseconds after 1970")))
        }
        n => Err(reader.error(format!("{n} instants of the freeze"))),
    }
}

fn read_servers(reader: &mut Reader<'_>) -> Result<Vec<ServerAddress>, ManifestError> {
    let count = reader.array()?;
    within("page servers", to_u64(count), to_u64(MAX_SERVERS))?;
    let mut servers = Vec::with_capacity(count);
    for _ in 0..count {
        let before = reader.moved_to(reader.place());
        let text = reader.text()?;
        within("bytes in a page server's address", to_u64(text.len()), to_u64(MAX_ADDRESS))?;
        let address: ServerAddress = text.parse().map_err(|e| before.error(format!("{e}")))?;
        servers.push(address);
    }
    Ok(servers)
}

fn read_holes(reader: &mut Reader<'_>, frames: u32) -> Result<Vec<Range<u32>>, ManifestError> {
    let numbers = reader.array()?;
    within("holes", to_u64(numbers / 2), to_u64(MAX_HOLES))?;
    if numbers % 2 != 0 {
        return Err(reader.error(format!("{numbers} numbers, not two for each hole")));
    }
    let mut holes: Vec<Range<u32>> = Vec::with_capacity(numbers / 2);
    for _ in 0..numbers / 2 {
        let (gap, length) = (reader.uint()?, reader.uint()?);
        let before = holes.last().map_or(0, |hole| hole.end);
        let is_apart = length > 0 && (gap > 0 || holes.is_empty());
        let start = u64::from(before).checked_add(gap).filter(|_| is_apart);
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        let range = range.filter(|range| range.end <= u64::from(frames));
        let hole = range.and_then(|range| {
            Some(u32::try_from(range.start).ok()?..u32::try_from(range.end).ok()?)
        });
        holes.push(hole.ok_or_else(|| {
            reader.error(format!(
                "holes must ascend, have gaps between them, and end by frame {frames}"
            ))
        })?);
    }
    Ok(holes)
}

fn read_free_frames(reader: &mut Reader<'_>) -> Result<FreeFrames, ManifestError> {
    let before = reader.moved_to(reader.place());
    let name = reader.text()?;
    match name.parse() {
        Ok(decided @ (FreeFrames::Zero | FreeFrames::Fetch)) => Ok(decided),
        Ok(FreeFrames::Auto) => Err(before.error("free frames are `zero` or `fetch`")),
        Err(e) => Err(before.error(format!("{e}"))),
    }
}
