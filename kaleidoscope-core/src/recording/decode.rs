//! Decodes a payload into its recording.
//!
//! The payload is hostile, as a manifest's is, and handled in the same way.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::encode::NO_FRAME;
use super::region::{MAX_STRETCHES, PageRange, has_shape, is_ranked};
use super::{
    Entry, Key, MAX_RUNS, RANK_ONE, RecordedRegion, Recording, RecordingError, RecordingLimits,
    Salt,
};
use crate::addr::Gfn;
use crate::codec::cbor::Reader;
use crate::codec::columns::{LastPositions, NO_REGION, u32s, u64s};
use crate::codec::fields::fields;
use crate::codec::guest::{read_identity, read_kernel};
use crate::codec::names::{Names, read_names};
use crate::codec::text::TextBudget;
use crate::codec::{ManifestError, to_u64, within};
use crate::color::{Color, FrameKind, Order};

/// Kinds of keys.
#[derive(Clone, Copy)]
enum KeyKind {
    Frame,
    Position,
    Rank,
}

struct Palette {
    keys: Names<KeyKind>,
    kinds: Names<FrameKind>,
    colors: Names<Color>,
    orders: Names<Order>,
}

/// Decodes a payload.
pub(super) fn payload(bytes: &[u8], limits: &RecordingLimits) -> Result<Recording, RecordingError> {
    let mut reader = Reader::new(bytes);
    let keys = ["runs", "salt", "kernel", "entries", "palette", "regions", "identity"];
    let [runs, salt, kernel, entries, palette, regions, identity] = fields(&mut reader, keys)?;
    reader.finish()?;

    let at = |field, place| Reader::at(bytes, field, place);
    let texts = limits.texts();
    let mut text = TextBudget::new(&texts);
    let runs = read_runs(&mut at("runs", runs))?;
    let salt = read_salt(&mut at("salt", salt))?;
    let kernel = read_kernel(&mut at("kernel", kernel), &mut text)?;
    let palette = read_palette(&mut at("palette", palette))?;
    let regions = read_regions(&mut at("regions", regions), &palette, limits, &mut text)?;
    let image = read_identity(&mut at("identity", identity))?;
    let columns = Columns::read(&mut at("entries", entries), limits)?;
    let entries = columns.entries(&palette, &regions, runs)?;
    Ok(Recording { kernel, image, runs, salt, regions, entries })
}

fn read_runs(reader: &mut Reader<'_>) -> Result<u32, ManifestError> {
    let runs = reader.uint()?;
    let known = u32::try_from(runs).ok().filter(|runs| (1..=MAX_RUNS).contains(runs));
    known.ok_or_else(|| reader.error(format!("{runs} runs, not 1 to {MAX_RUNS}")))
}

fn read_salt(reader: &mut Reader<'_>) -> Result<Option<Salt>, ManifestError> {
    let salt = reader.bytes()?;
    if salt.is_empty() {
        return Ok(None);
    }
    let salt = salt.try_into().map_err(|_| reader.error("a salt is a string of 16 bytes"))?;
    Ok(Some(Salt(salt)))
}

fn read_palette(reader: &mut Reader<'_>) -> Result<Palette, ManifestError> {
    let [keys, kinds, colors, orders] = fields(reader, ["keys", "kinds", "colors", "orders"])?;
    let key = |name: &str| match name {
        "frame" => Some(KeyKind::Frame),
        "position" => Some(KeyKind::Position),
        "rank" => Some(KeyKind::Rank),
        _ => None,
    };
    let order = |name: &str| Order::ALL.into_iter().find(|o| o.name() == name);
    Ok(Palette {
        keys: read_names(&mut reader.moved_to(keys), key)?,
        kinds: read_names(&mut reader.moved_to(kinds), |n| n.parse::<FrameKind>().ok())?,
        colors: read_names(&mut reader.moved_to(colors), |n| n.parse::<Color>().ok())?,
        orders: read_names(&mut reader.moved_to(orders), order)?,
    })
}

fn read_regions(
    reader: &mut Reader<'_>,
    palette: &Palette,
    limits: &RecordingLimits,
    text: &mut TextBudget<'_>,
) -> Result<Vec<RecordedRegion>, ManifestError> {
    let count = reader.array()?;
    within("regions", to_u64(count), limits.max_regions)?;
    let mut regions = Vec::with_capacity(count);
    let mut left = limits.max_stretches;
    for _ in 0..count {
        let items = reader.array()?;
        let Some(unknown) = items.checked_sub(5) else {
            return Err(reader.error("a region is an array of five items"));
        };
        let (kind, order, frames) = (reader.uint()?, reader.uint()?, reader.uint()?);
        let number = |n| u8::try_from(n).map_err(|_| format!("number {n} is not in the palette"));
        let invalid = |problem: String| reader.error(problem);
        let kind = number(kind).and_then(|n| palette.kinds.get(n)).map_err(invalid)?;
        let order = number(order).and_then(|n| palette.orders.get(n)).map_err(invalid)?;
        let frames = u32::try_from(frames).map_err(|_| invalid(format!("{frames} frames")))?;
        let name = text.read(reader)?;
        let stretches = read_stretches(reader, &mut left)?;
        if !stretches.is_empty() && !has_shape(kind, order) {
            return Err(reader.error("stretches of a region whose addresses are not randomized"));
        }
        for _ in 0..unknown {
            reader.skip()?;
        }
        regions.push(RecordedRegion { kind, order, name, frames, stretches });
    }
    Ok(regions)
}

fn read_stretches(
    reader: &mut Reader<'_>,
    left: &mut u32,
) -> Result<Vec<PageRange>, ManifestError> {
    let numbers = reader.array()?;
    let count = numbers / 2;
    if numbers % 2 != 0 || count > MAX_STRETCHES {
        return Err(
            reader.error(format!("{numbers} numbers for at most {MAX_STRETCHES} stretches"))
        );
    }
    let taken = u32::try_from(count).unwrap_or(u32::MAX);
    *left = left.checked_sub(taken).ok_or(ManifestError::Limit {
        what: "stretches in one more region",
        found: u64::from(taken),
        limit: u64::from(*left),
    })?;
    let mut stretches = Vec::with_capacity(count);
    let mut end = 0u64;
    for number in 0..count {
        let (gap, pages) = (reader.uint()?, reader.uint()?);
        let start = end.checked_add(gap).filter(|_| pages > 0 && (gap > 0 || number == 0));
        let bounds = start.and_then(|start| Some((start, start.checked_add(pages)?)));
        let (start, after) = bounds
            .ok_or_else(|| reader.error("stretches must ascend and have gaps between them"))?;
        stretches.push(PageRange { start, pages });
        end = after;
    }
    Ok(stretches)
}

/// One column per property of an entry.
struct Columns<'a> {
    gfn: &'a [u8],
    key: &'a [u8],
    nth: &'a [u8],
    rank: &'a [u8],
    runs: &'a [u8],
    color: &'a [u8],
    region: &'a [u8],
    position: &'a [u8],
}

impl<'a> Columns<'a> {
    fn read(reader: &mut Reader<'a>, limits: &RecordingLimits) -> Result<Self, RecordingError> {
        let names = ["gfn", "key", "nth", "rank", "runs", "color", "region", "position"];
        let [gfn, key, nth, rank, runs, color, region, position] = fields(reader, names)?;
        let bytes = |place| reader.moved_to(place).bytes();
        let columns = Self {
            gfn: bytes(gfn)?,
            key: bytes(key)?,
            nth: bytes(nth)?,
            rank: bytes(rank)?,
            runs: bytes(runs)?,
            color: bytes(color)?,
            region: bytes(region)?,
            position: bytes(position)?,
        };
        let n = columns.key.len();
        within("entries", to_u64(n), limits.max_entries)?;
        for (column, bytes, width) in [
            ("gfn", columns.gfn, 8),
            ("nth", columns.nth, 4),
            ("rank", columns.rank, 8),
            ("runs", columns.runs, 4),
            ("color", columns.color, 1),
            ("region", columns.region, 4),
            ("position", columns.position, 8),
        ] {
            let (found, expected) = (bytes.len(), n.saturating_mul(width));
            if found != expected {
                let problem = format!("the column has {found} bytes instead of {expected}");
                return Err(RecordingError::Entry { column, entry: 0, problem });
            }
        }
        Ok(columns)
    }

    fn entries(
        &self,
        palette: &Palette,
        regions: &[RecordedRegion],
        runs: u32,
    ) -> Result<Vec<Entry>, RecordingError> {
        let small = self.key.iter().zip(self.color).zip(u32s(self.nth));
        let sums = u32s(self.runs).zip(u64s(self.rank));
        let place = u32s(self.region).zip(u64s(self.position));
        let rows = small.zip(sums).zip(u64s(self.gfn).zip(place));
        let (mut gfn, mut ranks) = (0u64, 0u64);
        let mut last = LastPositions::new(regions.len());
        let mut entries: Vec<Entry> = Vec::with_capacity(self.key.len());
        for (number, row) in rows.enumerate() {
            let ((((&key, &color), nth), (touched, rank)), (frame, (region, step))) = row;
            let invalid =
                |column, problem: String| RecordingError::Entry { column, entry: number, problem };
            gfn = gfn.wrapping_add(frame);
            ranks = ranks.wrapping_add(rank);
            let of_region = regions.get(usize::try_from(region).unwrap_or(usize::MAX));
            if of_region.is_none() && region != NO_REGION {
                return Err(invalid("region", format!("there is no region {region}")));
            }
            let position = last.position(region, step);
            let key = match palette.keys.get(key).map_err(|p| invalid("key", p))? {
                KeyKind::Frame => key_of_frame(region, position, nth, gfn),
                KeyKind::Position => key_of_position(of_region, region, position, nth),
                KeyKind::Rank => key_of_rank(of_region, region, position, nth),
            };
            let key = key.map_err(|(column, problem)| invalid(column, problem))?;
            if !(1..=runs).contains(&touched) {
                return Err(invalid("runs", format!("{touched} of {runs} runs")));
            }
            if ranks > u64::from(touched).saturating_mul(RANK_ONE) {
                return Err(invalid("rank", format!("{ranks} is too large for {touched} runs")));
            }
            let entry = Entry {
                gfn: (gfn != NO_FRAME).then_some(Gfn(gfn)),
                key,
                color: palette.colors.get(color).map_err(|p| invalid("color", p))?,
                runs: touched,
                ranks,
            };
            if entries.last().is_some_and(|before| before.order(&entry).is_gt()) {
                return Err(invalid("rank", "the entries are not in order".into()));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

type KeyResult = Result<Key, (&'static str, String)>;

fn key_of_frame(region: u32, position: u64, nth: u32, gfn: u64) -> KeyResult {
    if region != NO_REGION {
        return Err(("region", format!("a bare frame in region {region}")));
    }
    if position != 0 || nth != 0 {
        return Err(("position", "a bare frame has no position".into()));
    }
    if gfn == NO_FRAME {
        return Err(("gfn", "neither frame nor region".into()));
    }
    Ok(Key::Frame)
}

fn key_of_position(
    of_region: Option<&RecordedRegion>,
    region: u32,
    position: u64,
    nth: u32,
) -> KeyResult {
    let found = of_region.ok_or(("region", "a position in no region".to_owned()))?;
    if is_ranked(found.kind, found.order) {
        return Err(("key", format!("a position in region {region}, which counts ranks")));
    }
    Ok(Key::Position { region, position, nth })
}

fn key_of_rank(
    of_region: Option<&RecordedRegion>,
    region: u32,
    position: u64,
    nth: u32,
) -> KeyResult {
    let found = of_region.ok_or(("region", "a rank in no region".to_owned()))?;
    if !is_ranked(found.kind, found.order) {
        return Err(("key", format!("a rank in region {region}, which counts positions")));
    }
    let rank = u32::try_from(position).ok().filter(|_| nth == 0);
    let rank = rank.ok_or_else(|| ("position", format!("{position} is no rank")))?;
    Ok(Key::Rank { region, rank })
}
