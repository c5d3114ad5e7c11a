//! From a manifest to its payload.
//!
//! Keys of a map are written in ascending order of their encoding (shorter ones first), as deterministic CBOR asks.

use super::cbor::Writer;
use super::columns::Columns;
use super::{ImageIdentity, Manifest};
use crate::color::{Color, ColorMap, FrameKind, KernelIdentity, Order, Temperature};
use crate::fingerprint::Fingerprints;
use crate::memory::MemoryLayout;

/// Key of the number of contradictions, left out where there are none.
pub(super) const CONTRADICTIONS: &str = "contradictions";

/// The CBOR map of a manifest.
pub(crate) fn payload(manifest: &Manifest) -> Vec<u8> {
    let Manifest { map, identity, notes, fingerprints } = manifest;
    parts(map, identity, notes, fingerprints.as_ref())
}

/// The CBOR map of a manifest with these parts.
pub(crate) fn parts(
    map: &ColorMap,
    of: &ImageIdentity,
    notes: &[String],
    fingerprints: Option<&Fingerprints>,
) -> Vec<u8> {
    let mut out = Writer::default();
    let contradictions = map.contradictions();
    out.map(7 + usize::from(fingerprints.is_some()) + usize::from(contradictions > 0));
    out.text("notes");
    texts(&mut out, notes.iter().map(String::as_str));
    out.text("frames");
    frames(&mut out, &Columns::of(map));
    out.text("kernel");
    kernel(&mut out, map.kernel());
    out.text("layout");
    layout(&mut out, map.layout());
    out.text("palette");
    palette(&mut out);
    out.text("regions");
    regions(&mut out, map);
    out.text("identity");
    identity(&mut out, of);
    if let Some(fingerprints) = fingerprints {
        super::fingerprints::write(&mut out, fingerprints);
    }
    if contradictions > 0 {
        out.text(CONTRADICTIONS);
        out.uint(contradictions);
    }
    out.finish()
}

pub(crate) fn identity(out: &mut Writer, identity: &ImageIdentity) {
    out.map(2);
    out.text("digest");
    out.bytes(&identity.digest);
    out.text("frames");
    out.uint(identity.frames);
}

fn frames(out: &mut Writer, columns: &Columns<Vec<u8>>) {
    out.map(5);
    out.text("kind");
    out.bytes(&columns.kind);
    out.text("color");
    out.bytes(&columns.color);
    out.text("region");
    out.bytes(&columns.region);
    out.text("position");
    out.bytes(&columns.position);
    out.text("temperature");
    out.bytes(&columns.temperature);
}

pub(crate) fn kernel(out: &mut Writer, kernel: &KernelIdentity) {
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

pub(crate) fn layout(out: &mut Writer, layout: &MemoryLayout) {
    let regions = layout.regions();
    out.array(regions.len());
    for region in regions {
        out.array(2);
        out.uint(region.start.0);
        out.uint(region.frames);
    }
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

pub(crate) fn texts<'a>(out: &mut Writer, texts: impl ExactSizeIterator<Item = &'a str>) {
    out.array(texts.len());
    texts.for_each(|text| out.text(text));
}
