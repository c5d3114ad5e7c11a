//! Finds the tables and determines their layout.
//!
//! The token table is the anchor: its digits are a pattern that hardly occurs elsewhere, and its
//! index confirms it. From there, the markers are found by searching backward, then the names
//! before them, and finally the offsets, whose location and encoding depend on the kernel.

use super::lookup::Matcher;
use super::names::Names;
use super::tokens::{DIGITS, TokenTable};
use super::{Addressing, Kallsyms, KallsymsError, KallsymsHints, NAMES_PER_MARKER};
use crate::addr::Gva;
use crate::linux::bytes::{address, align_up, index, u32_at, u64_at};
use memchr::memmem;

/// Maximum number of symbols. Distribution kernels have 80,000 to 250,000.
const MAX_SYMBOLS: usize = 1 << 20;

/// Minimum number of blocks of 256 symbols. The smallest kernels have thousands of symbols.
const MIN_BLOCKS: usize = 3;

/// Possible sizes of 256 names in bytes: each name has at least a length byte and one token, and at
/// most two length bytes and 512 tokens.
const BLOCK_BYTES: std::ops::RangeInclusive<usize> = NAMES_PER_MARKER * 2..=NAMES_PER_MARKER * 514;

/// Maximum distance from the markers to the token table: the markers themselves and 3-byte sequence
/// numbers (6.2 to 6.3).
const MARKERS_WINDOW: usize = MAX_SYMBOLS * 3 + MAX_SYMBOLS / NAMES_PER_MARKER * 4 + 16;

/// Maximum alignment of the tables, which changed from 8 to 4. The padding between two tables is
/// smaller.
const MAX_ALIGNMENT: usize = 8;

/// Maximum number of candidates at each stage, so that the time is proportional to the size of
/// hostile memory.
const MAX_DIGIT_HITS: usize = 256;
const MAX_TOKEN_TABLES: usize = 4;
const MAX_MARKER_RUNS: usize = 4;
const MAX_NAME_STARTS: usize = 16;

/// Number of symbols to sample when checking a layout.
const SAMPLES: usize = 64;

/// Start of the text at `linux_banner`.
const BANNER: &[u8] = b"Linux version ";

/// The names and markers found in an image.
struct NameTable<'a> {
    count: usize,
    /// Offset in the image of the count.
    count_at: usize,
    /// Offset in the image of the first name.
    start: usize,
    names: &'a [u8],
    markers: &'a [u8],
}

/// The kernel image that is searched.
#[derive(Clone, Copy)]
struct Image<'a> {
    bytes: &'a [u8],
    va: Gva,
}

impl<'a> Image<'a> {
    fn va_of(self, offset: usize) -> Gva {
        Gva(self.va.0.wrapping_add(address(offset)))
    }

    /// Offset of an address in the image or at its end.
    fn offset_of(self, va: Gva) -> Option<usize> {
        let offset = usize::try_from(va.0.checked_sub(self.va.0)?).ok()?;
        (offset <= self.bytes.len()).then_some(offset)
    }
}

pub(super) fn find<'a>(
    bytes: &'a [u8],
    va: Gva,
    hints: &KallsymsHints,
) -> Result<Kallsyms<'a>, KallsymsError> {
    let image = Image { bytes, va };
    let mut furthest = KallsymsError::NoTokenTable { image: va, image_bytes: bytes.len() };

    let hinted = hints.token_table.and_then(|va| TokenTable::at(bytes, image.offset_of(va)?));
    let split = hints.read_only_data.and_then(|va| image.offset_of(va)).unwrap_or(0);
    let searched = digit_hits(bytes, split)
        .take(MAX_DIGIT_HITS)
        .filter_map(|digits| TokenTable::around(bytes, digits));
    for tokens in hinted.into_iter().chain(searched).take(MAX_TOKEN_TABLES) {
        match read_tables(image, tokens) {
            Ok(table) => return Ok(table),
            Err(error) => furthest = furthest.max(error),
        }
    }
    Err(furthest)
}

/// Offsets where the digits of a token table occur: first from `split` up, then before it.
fn digit_hits(bytes: &[u8], split: usize) -> impl Iterator<Item = usize> {
    // A hit that straddles the split belongs to the second part.
    let before_end = split.saturating_add(DIGITS.len()).saturating_sub(1).min(bytes.len());
    let (before, from) =
        (bytes.get(..before_end).unwrap_or_default(), bytes.get(split..).unwrap_or_default());
    let before = if split == 0 { &[] } else { before };
    memmem::find_iter(from, DIGITS)
        .map(move |at| at.saturating_add(split))
        .chain(memmem::find_iter(before, DIGITS))
}

fn read_tables<'a>(
    image: Image<'a>,
    tokens: TokenTable<'a>,
) -> Result<Kallsyms<'a>, KallsymsError> {
    let mut error = KallsymsError::NoNames { token_table: image.va_of(tokens.start) };
    for markers_at in marker_runs(image.bytes, tokens.start).take(MAX_MARKER_RUNS) {
        let run = marker_run_length(image.bytes, markers_at, tokens.start);
        // The bytes after the markers may look like one or two more markers.
        for blocks in (run.saturating_sub(2).max(MIN_BLOCKS)..=run).rev() {
            let Some(table) = names_before(image.bytes, markers_at, blocks) else { continue };
            if let Some((offsets, addressing)) = addresses(image, &tokens, &table) {
                let NameTable { count, names, markers, .. } = table;
                return Ok(Kallsyms { tokens, names, markers, offsets, addressing, count });
            }
            error = error.max(KallsymsError::NoAddresses {
                names: image.va_of(table.start),
                symbols: table.count,
            });
        }
    }
    Err(error)
}

/// Possible starts of marker tables, nearest to the token table first: a zero followed by
/// [`MIN_BLOCKS`] - 1 plausible positions.
fn marker_runs(bytes: &[u8], before: usize) -> impl Iterator<Item = usize> {
    let low = before.saturating_sub(MARKERS_WINDOW);
    let last = before.saturating_sub(MIN_BLOCKS.saturating_mul(4)) & !3;
    let candidates =
        std::iter::successors(Some(last), |at| at.checked_sub(4)).take_while(move |&at| at >= low);
    candidates.filter(move |&at| {
        u32_at(bytes, at) == Some(0) && marker_run_length(bytes, at, before) >= MIN_BLOCKS
    })
}

/// Number of plausible markers from `at` to `end`.
fn marker_run_length(bytes: &[u8], at: usize, end: usize) -> usize {
    let words = bytes
        .get(at..end)
        .unwrap_or_default()
        .chunks_exact(4)
        .filter_map(|word| u32_at(word, 0))
        .map(index);
    let mut previous = None;
    words
        .take(MAX_SYMBOLS / NAMES_PER_MARKER)
        .take_while(|&marker| match previous.replace(marker) {
            None => marker == 0,
            Some(before) => {
                marker.checked_sub(before).is_some_and(|block| BLOCK_BYTES.contains(&block))
            }
        })
        .count()
}

/// The names that end at `markers_at`, where the table of `blocks` markers begins.
fn names_before(bytes: &[u8], markers_at: usize, blocks: usize) -> Option<NameTable<'_>> {
    let markers = bytes.get(markers_at..markers_at.checked_add(blocks.checked_mul(4)?)?)?;
    let last_block = index(u32_at(markers, markers.len().checked_sub(4)?)?);
    // The count, in four or eight bytes, precedes the names. Search backward from the latest
    // possible start for a count that matches the number of markers.
    let latest = markers_at.checked_sub(last_block)? & !3;
    let earliest =
        latest.saturating_sub(BLOCK_BYTES.end().saturating_add(MAX_ALIGNMENT)).max(MAX_ALIGNMENT);
    let starts = std::iter::successors(Some(latest), |at| at.checked_sub(4))
        .take_while(|&at| at >= earliest);
    let counted = starts.flat_map(|start| {
        let count = move |before: usize| {
            let count_at = start.checked_sub(before)?;
            let count = index(u32_at(bytes, count_at)?);
            (count.div_ceil(NAMES_PER_MARKER) == blocks).then_some((start, count_at, count))
        };
        [count(4), count(8)].into_iter().flatten()
    });
    counted.take(MAX_NAME_STARTS).find_map(|(start, count_at, count)| {
        let names = bytes.get(start..markers_at)?;
        let second_block = index(u32_at(markers, 4)?);
        let after_first =
            names.len().checked_sub(Names::new(names).skip_names(NAMES_PER_MARKER)?.remaining())?;
        let names_in_last =
            count.checked_sub(blocks.checked_sub(1)?.checked_mul(NAMES_PER_MARKER)?)?;
        let padding = Names::new(names.get(last_block..)?).skip_names(names_in_last)?.remaining();
        (after_first == second_block && padding < MAX_ALIGNMENT).then_some(NameTable {
            count,
            count_at,
            start,
            names,
            markers,
        })
    })
}

/// The offsets and their encoding for which symbols lie in the image and `linux_banner` is at the
/// banner.
fn addresses<'a>(
    image: Image<'a>,
    tokens: &TokenTable<'a>,
    table: &NameTable<'a>,
) -> Option<(&'a [u8], Addressing)> {
    let mut plausible = layouts(image, tokens, table);
    plausible
        .retain(|&(offsets, addressing)| lands_in_image(image, offsets, addressing, table.count));
    if plausible.is_empty() {
        return None;
    }
    let mut banner = None;
    Matcher::new(tokens, &["linux_banner"]).run(
        Names::new(table.names).take(table.count),
        |i, _| {
            banner = Some(i);
            false
        },
    );
    plausible.into_iter().find(|&(offsets, addressing)| match banner {
        Some(i) => lands_on_banner(image, offsets, addressing, i),
        // Without KALLSYMS_ALL, the table contains only functions.
        None => true,
    })
}

/// All known locations of the offsets with all known encodings.
fn layouts<'a>(
    image: Image<'a>,
    tokens: &TokenTable<'a>,
    table: &NameTable<'a>,
) -> Vec<(&'a [u8], Addressing)> {
    let mut layouts = Vec::new();
    let Some(length) = table.count.checked_mul(4) else { return layouts };
    let offsets = |at: usize| image.bytes.get(at..at.checked_add(length)?);
    let mut with_base = |offsets: &'a [u8], base_at: usize| {
        if let Some(base) = u64_at(image.bytes, base_at).map(Gva) {
            layouts.push((offsets, Addressing::AbsolutePerCpu { base }));
            layouts.push((offsets, Addressing::BaseRelative { base }));
        }
    };
    // Before the count: offsets, then the base.
    let in_front = || {
        let base_at = table.count_at.checked_sub(8)?;
        let offsets = offsets(base_at.checked_sub(align_up(length, 8)?)?)?;
        Some((offsets, base_at))
    };
    if let Some((offsets, base_at)) = in_front() {
        with_base(offsets, base_at);
    }
    // After the index: offsets, then the base if there is one.
    let behind = |alignment| {
        let at = align_up(tokens.end, alignment)?;
        Some((at, offsets(at)?, align_up(at.checked_add(length)?, alignment)?))
    };
    for alignment in [4, 8] {
        if let Some((_, offsets, base_at)) = behind(alignment) {
            with_base(offsets, base_at);
        }
    }
    for alignment in [4, 8] {
        if let Some((at, offsets, _)) = behind(alignment) {
            layouts.push((offsets, Addressing::SelfRelative { offsets: image.va_of(at) }));
        }
    }
    layouts
}

/// Whether most symbols lie in the image (per-CPU symbols do not) and are sorted.
fn lands_in_image(image: Image<'_>, offsets: &[u8], addressing: Addressing, count: usize) -> bool {
    let step = count.div_ceil(SAMPLES).max(1);
    let addresses = || {
        (0..count)
            .step_by(step)
            .filter_map(|i| Some(addressing.address(i, u32_at(offsets, i.checked_mul(4)?)?)))
    };
    let inside = addresses().filter(|&va| image.offset_of(va).is_some()).count();
    addresses().is_sorted() && inside > addresses().count() / 2
}

fn lands_on_banner(
    image: Image<'_>,
    offsets: &[u8],
    addressing: Addressing,
    banner: usize,
) -> bool {
    let text = || {
        let va = addressing.address(banner, u32_at(offsets, banner.checked_mul(4)?)?);
        image.bytes.get(image.offset_of(va)?..)
    };
    text().is_some_and(|text| text.starts_with(BANNER))
}
