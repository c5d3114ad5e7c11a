//! Encodes a recording as its payload.
//!
//! Map keys are written in ascending order of their encoding (shorter ones first), as deterministic
//! CBOR requires.

use super::{Key, RecordedRegion, Recording, RecordingLimits};
use crate::codec::cbor::Writer;
use crate::codec::columns::{LastPositions, NO_REGION};
use crate::codec::guest::{write_identity, write_kernel};
use crate::codec::text::{check_texts, texts};
use crate::codec::{ManifestError, to_u64, within};
use crate::color::{Color, FrameKind, Order};

/// Frame number of entries without a frame in the recorded guest.
pub(super) const NO_FRAME: u64 = u64::MAX;

/// Names of the kinds of keys; a number in column `key` is an index into this list.
pub(super) const KEYS: [&str; 3] = ["frame", "position", "rank"];

/// Rejects what a reader with these limits would reject.
pub(super) fn check(recording: &Recording, limits: &RecordingLimits) -> Result<(), ManifestError> {
    let Recording { kernel, regions, entries, .. } = recording;
    within("entries", to_u64(entries.len()), limits.max_entries)?;
    within("regions", to_u64(regions.len()), limits.max_regions)?;
    let stretches = regions.iter().map(|region| to_u64(region.stretches.len()));
    within("stretches", stretches.sum(), limits.max_stretches)?;
    let kernel = [&kernel.os, &kernel.release, &kernel.banner, &kernel.build_id, &kernel.paging];
    let texts = kernel.into_iter().chain(regions.iter().map(|region| &region.name));
    check_texts(texts.map(String::as_str), &limits.texts())
}

/// The CBOR map of a recording.
pub(super) fn payload(recording: &Recording) -> Vec<u8> {
    let mut out = Writer::default();
    out.map(7);
    out.text("runs");
    out.uint(recording.runs);
    out.text("salt");
    out.bytes(recording.salt.as_ref().map_or(&[], |salt| &salt.0));
    out.text("kernel");
    write_kernel(&mut out, &recording.kernel);
    out.text("entries");
    entries(&mut out, recording);
    out.text("palette");
    palette(&mut out);
    out.text("regions");
    out.array(recording.regions.len());
    recording.regions.iter().for_each(|r| region(&mut out, r));
    out.text("identity");
    write_identity(&mut out, &recording.image);
    out.finish()
}

fn palette(out: &mut Writer) {
    out.map(4);
    out.text("keys");
    texts(out, KEYS.into_iter());
    out.text("kinds");
    texts(out, FrameKind::ALL.into_iter().map(FrameKind::name));
    out.text("colors");
    texts(out, Color::ALL.into_iter().map(Color::name));
    out.text("orders");
    texts(out, Order::ALL.into_iter().map(Order::name));
}

fn region(out: &mut Writer, region: &RecordedRegion) {
    out.array(5);
    out.uint(region.kind as u8);
    out.uint(region.order as u8);
    out.uint(region.frames);
    out.text(&region.name);
    // The gap before each stretch, and its pages.
    out.array(region.stretches.len().saturating_mul(2));
    let mut end = 0;
    for stretch in &region.stretches {
        out.uint(stretch.start.wrapping_sub(end));
        out.uint(stretch.pages);
        end = stretch.end();
    }
}

/// A column of differences between successive values, which compress better than the values.
#[derive(Default)]
struct DeltaColumn {
    before: u64,
    bytes: Vec<u8>,
}

impl DeltaColumn {
    fn push(&mut self, value: u64) {
        let before = std::mem::replace(&mut self.before, value);
        self.bytes.extend_from_slice(&value.wrapping_sub(before).to_le_bytes());
    }
}

fn entries(out: &mut Writer, recording: &Recording) {
    let (mut gfn, mut rank) = (DeltaColumn::default(), DeltaColumn::default());
    let (mut key, mut color) = (Vec::new(), Vec::new());
    let (mut nth, mut runs, mut region, mut position) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut last = LastPositions::new(recording.regions.len());
    for entry in &recording.entries {
        gfn.push(entry.gfn.map_or(NO_FRAME, |gfn| gfn.0));
        rank.push(entry.ranks);
        let (number, of_region, at, which) = match entry.key {
            Key::Frame => (0, NO_REGION, 0, 0),
            Key::Position { region, position, nth } => (1, region, position, nth),
            Key::Rank { region, rank } => (2, region, u64::from(rank), 0),
        };
        key.push(number);
        color.push(entry.color as u8);
        nth.extend_from_slice(&u32::to_le_bytes(which));
        runs.extend_from_slice(&entry.runs.to_le_bytes());
        region.extend_from_slice(&u32::to_le_bytes(of_region));
        position.extend_from_slice(&last.difference(of_region, at).to_le_bytes());
    }
    out.map(8);
    for (name, column) in [
        ("gfn", gfn.bytes),
        ("key", key),
        ("nth", nth),
        ("rank", rank.bytes),
        ("runs", runs),
        ("color", color),
        ("region", region),
        ("position", position),
    ] {
        out.text(name);
        out.bytes(&column);
    }
}
