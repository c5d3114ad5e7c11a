//! Kernel images with a symbol table in any layout, for tests. Follows the format description and
//! shares no code with the parser.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use crate::addr::Gva;
use std::collections::HashMap;

/// First virtual address of synthetic images.
pub(crate) const BASE: u64 = 0xffff_ffff_9360_0000;

/// Bytes of an image before its tables; symbols point into it.
pub(crate) const TEXT_BYTES: usize = 0x8000;

/// Virtual address of the banner.
const BANNER_AT: u64 = BASE + 0x7000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    AbsolutePerCpu,
    BaseRelative,
    SelfRelative,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) encoding: Encoding,
    pub(crate) alignment: usize,
    /// Whether the offsets precede the names (until 6.3) or follow the token index.
    pub(crate) offsets_first: bool,
    pub(crate) sequence_numbers: bool,
}

pub(crate) const LAYOUTS: [(&str, Layout); 6] = {
    use Encoding::{AbsolutePerCpu, BaseRelative, SelfRelative};
    const fn layout(
        encoding: Encoding,
        alignment: usize,
        offsets_first: bool,
        sequence_numbers: bool,
    ) -> Layout {
        Layout { encoding, alignment, offsets_first, sequence_numbers }
    }
    [
        ("x86-64, 5.4 to 6.1", layout(AbsolutePerCpu, 8, true, false)),
        ("x86-64, 6.2 and 6.3", layout(AbsolutePerCpu, 8, true, true)),
        ("x86-64, 6.4 to 6.14", layout(AbsolutePerCpu, 8, false, true)),
        ("arm64, 5.4 to 6.1", layout(BaseRelative, 8, true, false)),
        ("6.15 and later", layout(BaseRelative, 8, false, true)),
        ("7.x", layout(SelfRelative, 4, false, true)),
    ]
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) address: u64,
    pub(crate) kind: char,
    pub(crate) name: String,
}

pub(crate) struct Synthetic {
    pub(crate) image: Vec<u8>,
    /// The symbols in table order.
    pub(crate) entries: Vec<Entry>,
    pub(crate) token_table: Gva,
    /// Offset of the first name in the image.
    pub(crate) names_at: usize,
    /// Offset of the first offset in the image.
    pub(crate) offsets_at: usize,
}

/// The image of a kernel with these functions and a `linux_banner`, one symbol every 16 bytes. The
/// first few are per-CPU symbols if the encoding has them.
pub(crate) fn image(layout: Layout, names: &[String]) -> Synthetic {
    let mut entries = entries(layout.encoding, names);
    entries.push(Entry { address: BANNER_AT, kind: 'D', name: "linux_banner".into() });
    image_of(layout, entries)
}

/// The image of a kernel built without `KALLSYMS_ALL`: functions only.
pub(crate) fn image_without_banner(layout: Layout, names: &[String]) -> Synthetic {
    image_of(layout, entries(layout.encoding, names))
}

fn image_of(layout: Layout, entries: Vec<Entry>) -> Synthetic {
    let mut image: Vec<u8> =
        (0..TEXT_BYTES).map(|at| u8::try_from((at * 7 + at / 256) % 251).unwrap()).collect();
    let banner = usize::try_from(BANNER_AT - BASE).unwrap();
    let text = b"Linux version 6.1.0 (a@b) #1 SMP\n";
    image[banner..banner + text.len()].copy_from_slice(text);

    let tokens = token_table();
    let mut by_first: HashMap<u8, Vec<(u8, String)>> = HashMap::new();
    for (code, token) in (0..=255).zip(&tokens) {
        by_first.entry(token.as_bytes()[0]).or_default().push((code, token.clone()));
    }
    let align =
        |image: &mut Vec<u8>| image.resize(image.len().next_multiple_of(layout.alignment), 0);
    let mut offsets_at = 0;
    if layout.offsets_first {
        offsets_at = put_offsets(&mut image, layout, &entries);
    }
    image.extend(u32::try_from(entries.len()).unwrap().to_le_bytes());
    align(&mut image);

    let names_at = image.len();
    let mut markers = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        if i % 256 == 0 {
            markers.push(u32::try_from(image.len() - names_at).unwrap());
        }
        let codes = compress(&by_first, &format!("{}{}", entry.kind, entry.name));
        if codes.len() < 0x80 {
            image.push(u8::try_from(codes.len()).unwrap());
        } else {
            image.push(u8::try_from(codes.len() & 0x7f).unwrap() | 0x80);
            image.push(u8::try_from(codes.len() >> 7).unwrap());
        }
        image.extend(codes);
    }
    align(&mut image);
    image.extend(markers.into_iter().flat_map(u32::to_le_bytes));
    align(&mut image);
    if layout.sequence_numbers && layout.offsets_first {
        put_sequence_numbers(&mut image, &entries);
        align(&mut image);
    }

    let token_table = Gva(BASE + image.len() as u64);
    let start = image.len();
    let mut index = Vec::new();
    for token in &tokens {
        index.push(u16::try_from(image.len() - start).unwrap());
        image.extend(token.bytes());
        image.push(0);
    }
    align(&mut image);
    image.extend(index.into_iter().flat_map(u16::to_le_bytes));
    if !layout.offsets_first {
        align(&mut image);
        offsets_at = put_offsets(&mut image, layout, &entries);
        if layout.sequence_numbers {
            put_sequence_numbers(&mut image, &entries);
        }
    }
    // Unrelated bytes after the tables.
    image.extend((0..0x900_usize).map(|at| u8::try_from(at * 31 % 256).unwrap()));
    Synthetic { image, entries, token_table, names_at, offsets_at }
}

fn entries(encoding: Encoding, names: &[String]) -> Vec<Entry> {
    let per_cpu = if encoding == Encoding::AbsolutePerCpu { names.len() / 16 } else { 0 };
    let entry = |(i, name): (usize, &String)| {
        let address = if i < per_cpu {
            i * 0x40
        } else {
            usize::try_from(BASE).unwrap() + (i - per_cpu) * 16
        };
        let kind = if i < per_cpu { 'A' } else { ['T', 't', 'W'][i % 3] };
        Entry { address: address as u64, kind, name: name.clone() }
    };
    names.iter().enumerate().map(entry).collect()
}

fn put_offsets(image: &mut Vec<u8>, layout: Layout, entries: &[Entry]) -> usize {
    image.resize(image.len().next_multiple_of(layout.alignment), 0);
    let start = image.len();
    for entry in entries {
        let here = BASE + image.len() as u64;
        let distance = entry.address.wrapping_sub(BASE).cast_signed();
        let offset = match layout.encoding {
            Encoding::AbsolutePerCpu if entry.address < BASE => entry.address.cast_signed(),
            Encoding::AbsolutePerCpu => -1 - distance,
            Encoding::BaseRelative => distance,
            Encoding::SelfRelative => entry.address.wrapping_sub(here).cast_signed(),
        };
        image.extend(i32::try_from(offset).unwrap().to_le_bytes());
    }
    image.resize(image.len().next_multiple_of(layout.alignment), 0);
    if layout.encoding != Encoding::SelfRelative {
        image.extend(BASE.to_le_bytes());
    }
    start
}

/// For each symbol in the order of names, its number in three bytes, most significant first.
fn put_sequence_numbers(image: &mut Vec<u8>, entries: &[Entry]) {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&i| &entries[i].name);
    image.extend(
        order.into_iter().flat_map(|i| u32::try_from(i).unwrap().to_be_bytes().into_iter().skip(1)),
    );
}

/// Printable characters stand for themselves, the other codes for common and made-up strings.
fn token_table() -> Vec<String> {
    let common = [
        "sys_", "__", "Tx", "t_", "get_", "_in", "it", "lock", "Ainit", "linux_b", "T__x64_",
        "page", "ge_", "anner",
    ];
    let token = |code: u8| match code {
        b'!'..=b'~' => char::from(code).to_string(),
        _ => common
            .get(usize::from(code) % 97)
            .map_or_else(|| format!("~{code}"), |text| (*text).to_owned()),
    };
    (0..=255).map(token).collect()
}

/// Greedy compression: the longest token first, the last of equally long ones.
fn compress(by_first: &HashMap<u8, Vec<(u8, String)>>, mut text: &str) -> Vec<u8> {
    let mut codes = Vec::new();
    while let Some(first) = text.bytes().next() {
        let fitting = by_first[&first].iter().filter(|(_, token)| text.starts_with(token.as_str()));
        let (code, token) = fitting.max_by_key(|(_, token)| token.len()).unwrap();
        codes.push(*code);
        text = &text[token.len()..];
    }
    codes
}
