//! Encodes a descriptor as its payload.
//!
//! Map keys are written in ascending order of their encoding (shorter ones first), as deterministic
//! CBOR requires.

use super::{Descriptor, DescriptorError, DescriptorLimits};
use crate::codec::cbor::Writer;
use crate::codec::fingerprints;
use crate::codec::guest::{write_identity, write_layout};
use crate::manifest::encode::{check_parts, parts};
use std::ops::Range;
use std::time::UNIX_EPOCH;

/// Rejects what a reader would reject. State, addresses and fingerprints were checked when they
/// were set.
pub(super) fn check(descriptor: &Descriptor) -> Result<(), DescriptorError> {
    let template = &descriptor.template;
    DescriptorLimits::default().manifest.admit_frames(template.layout.frames())?;
    let Some(map) = template.map() else { return Ok(()) };
    check_parts(map, &template.notes).map_err(DescriptorError::Colors)
}

/// The CBOR map of a descriptor.
pub(super) fn payload(descriptor: &Descriptor) -> Vec<u8> {
    let template = &descriptor.template;
    let mut out = Writer::default();
    let is_sparse = !template.holes.is_empty();
    let more = usize::from(is_sparse).saturating_add(template.fingerprints.iter().len());
    out.map(more.saturating_add(8));
    out.text("id");
    out.bytes(&descriptor.id.0);
    if is_sparse {
        out.text(HOLES);
        holes(&mut out, &template.holes);
    }
    out.text("state");
    out.bytes(&template.state);
    out.text("colors");
    let colors = template.map().map(|map| parts(map, &template.identity, &template.notes, None));
    out.bytes(&colors.unwrap_or_default());
    out.text("frozen");
    frozen_at(&mut out, descriptor);
    out.text("layout");
    write_layout(&mut out, &template.layout);
    out.text("servers");
    out.array(template.servers.len());
    template.servers.iter().for_each(|address| out.text(&address.to_string()));
    out.text("identity");
    write_identity(&mut out, &template.identity);
    out.text("free_frames");
    out.text(template.free_frames.name());
    if let Some(table) = &template.fingerprints {
        fingerprints::write(&mut out, table);
    }
    out.finish()
}

/// Key of the list of holes.
pub(super) const HOLES: &str = "holes";

/// Writes, for each hole, the frames between it and the previous one, and its length in frames.
fn holes(out: &mut Writer, holes: &[Range<u32>]) {
    out.array(holes.len().saturating_mul(2));
    let mut end = 0;
    for hole in holes {
        out.uint(hole.start.wrapping_sub(end));
        out.uint(hole.end.wrapping_sub(hole.start));
        end = hole.end;
    }
}

fn frozen_at(out: &mut Writer, descriptor: &Descriptor) {
    let since = descriptor.frozen_at().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let micros = since.and_then(|since| u64::try_from(since.as_micros()).ok());
    out.array(usize::from(micros.is_some()));
    if let Some(micros) = micros {
        out.uint(micros);
    }
}
