//! From a descriptor to its payload.
//!
//! Keys of a map are written in ascending order of their encoding (shorter ones first), as deterministic CBOR asks.

use super::Descriptor;
use crate::manifest::cbor::Writer;
use crate::manifest::encode::{identity, layout, parts};
use crate::manifest::fingerprints;
use std::time::UNIX_EPOCH;

/// The CBOR map of a descriptor.
pub(super) fn payload(descriptor: &Descriptor) -> Vec<u8> {
    let template = &descriptor.template;
    let mut out = Writer::default();
    out.map(if template.fingerprints.is_some() { 9 } else { 8 });
    out.text("id");
    out.bytes(&descriptor.id.0);
    out.text("state");
    out.bytes(&template.state);
    out.text("colors");
    let colors = template.map().map(|map| parts(map, &template.identity, &template.notes, None));
    out.bytes(&colors.unwrap_or_default());
    out.text("frozen");
    frozen(&mut out, descriptor);
    out.text("layout");
    layout(&mut out, &template.layout);
    out.text("servers");
    out.array(template.servers.len());
    template.servers.iter().for_each(|address| out.text(&address.to_string()));
    out.text("identity");
    identity(&mut out, &template.identity);
    out.text("free_frames");
    out.text(template.free_frames.name());
    if let Some(table) = &template.fingerprints {
        fingerprints::write(&mut out, table);
    }
    out.finish()
}

fn frozen(out: &mut Writer, descriptor: &Descriptor) {
    let since = descriptor.frozen_at().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let micros = since.and_then(|since| u64::try_from(since.as_micros()).ok());
    out.array(usize::from(micros.is_some()));
    if let Some(micros) = micros {
        out.uint(micros);
    }
}
