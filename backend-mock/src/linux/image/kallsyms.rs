//! Writes the kernel's symbol table, compressed like in the kernel's build (`scripts/kallsyms.c`):
//! every byte of a name is a token. Byte values that occur in names stand for themselves, the
//! others for longer sequences.

use crate::linux::style::KallsymsLayout;
use std::collections::BTreeMap;

/// A symbol: its address, its type letter as printed by `nm`, and its name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::linux) struct Symbol {
    pub(in crate::linux) address: u64,
    pub(in crate::linux) kind: char,
    pub(in crate::linux) name: String,
}

/// Number of names between two markers.
const MARKER_STEP: usize = 256;

/// Offsets of the table's parts from its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::linux) struct Parts {
    pub(in crate::linux) offsets: u64,
    pub(in crate::linux) relative_base: Option<u64>,
    pub(in crate::linux) num_syms: u64,
    pub(in crate::linux) names: u64,
    pub(in crate::linux) markers: u64,
    pub(in crate::linux) token_table: u64,
    pub(in crate::linux) token_index: u64,
}

/// Encodes the table for the address `at`, and returns its bytes and the offsets of its parts.
/// `base` is the address of the image's first byte. Symbols must be sorted by address.
pub(in crate::linux) fn encode(
    symbols: &[Symbol],
    layout: KallsymsLayout,
    at: u64,
    base: u64,
) -> (Vec<u8>, Parts) {
    let spelled: Vec<Vec<u8>> =
        symbols.iter().map(|s| format!("{}{}", s.kind, s.name).into_bytes()).collect();
    let tokens = choose_tokens(&spelled);
    let (names, markers) = compress(&spelled, &tokens);
    let mut token_table = Vec::new();
    let mut token_index = Vec::new();
    for token in &tokens {
        token_index.extend_from_slice(&u16::try_from(token_table.len()).unwrap_or(0).to_le_bytes());
        token_table.extend_from_slice(token);
        token_table.push(0);
    }
    let count = u32::try_from(symbols.len()).unwrap_or(0);
    let mut writer = Writer {
        bytes: Vec::new(),
        align: if layout == KallsymsLayout::SelfRelative { 4 } else { 8 },
    };
    let mut parts = Parts::default();
    if layout == KallsymsLayout::OffsetsFirst {
        parts.offsets = writer.part(&relative_offsets(symbols, base));
        parts.relative_base = Some(writer.part(&base.to_le_bytes()));
    }
    parts.num_syms = writer.part(&count.to_le_bytes());
    parts.names = writer.part(&names);
    parts.markers = writer.part(&markers);
    parts.token_table = writer.part(&token_table);
    parts.token_index = writer.part(&token_index);
    match layout {
        KallsymsLayout::OffsetsFirst => {}
        KallsymsLayout::OffsetsLast => {
            parts.offsets = writer.part(&relative_offsets(symbols, base));
            parts.relative_base = Some(writer.part(&base.to_le_bytes()));
        }
        KallsymsLayout::SelfRelative => {
            let place = at + writer.position();
            let from_place =
                |(i, s): (u64, &Symbol)| low_word(s.address.wrapping_sub(place + 4 * i));
            let offsets: Vec<u8> = (0..).zip(symbols).flat_map(from_place).collect();
            parts.offsets = writer.part(&offsets);
        }
    }
    if layout != KallsymsLayout::OffsetsFirst {
        // Symbol numbers in the order of names, three bytes each.
        let mut by_name: Vec<usize> = (0..symbols.len()).collect();
        by_name.sort_by_key(|&i| symbols.get(i).map(|s| &s.name));
        let sequence: Vec<u8> = by_name
            .iter()
            .flat_map(|i| i.to_be_bytes().into_iter().skip(usize::BITS as usize / 8 - 3))
            .collect();
        writer.part(&sequence);
    }
    (writer.bytes, parts)
}

struct Writer {
    bytes: Vec<u8>,
    align: usize,
}

impl Writer {
    /// Offset of the next part.
    fn position(&self) -> u64 {
        self.bytes.len().next_multiple_of(self.align) as u64
    }

    fn part(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(self.align), 0);
        let at = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        at
    }
}

fn low_word(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

/// Offsets from which the kernel computes addresses: negative ones are relative to the base, others
/// are absolute.
fn relative_offsets(symbols: &[Symbol], base: u64) -> Vec<u8> {
    let word = |s: &Symbol| {
        if s.address < base {
            low_word(s.address)
        } else {
            low_word((s.address - base + 1).wrapping_neg())
        }
    };
    symbols.iter().flat_map(word).collect()
}

/// Chooses the meaning of the 256 codes: bytes that occur stand for themselves, the others for
/// frequent pairs of tokens.
fn choose_tokens(names: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = vec![Vec::new(); 256];
    for &byte in names.iter().flatten().chain(b"0123456789") {
        if let Some(token) = tokens.get_mut(usize::from(byte)) {
            *token = vec![byte];
        }
    }
    let mut frequency: BTreeMap<&[u8], usize> = BTreeMap::new();
    // A sample of the names suffices to find frequent pairs.
    let sample = names.iter().step_by(7);
    for piece in sample.flat_map(|n| (2..=6).flat_map(|len| n.windows(len))) {
        *frequency.entry(piece).or_default() += 1;
    }
    let mut pieces: Vec<(usize, &[u8])> =
        frequency.into_iter().map(|(piece, count)| (count * (piece.len() - 1), piece)).collect();
    pieces.sort_unstable_by(|a, b| b.cmp(a));
    let unused = tokens.iter_mut().filter(|t| t.is_empty());
    for (token, (_, piece)) in unused.zip(pieces) {
        *token = piece.to_vec();
    }
    tokens
}

/// Encodes every name as a length and tokens; also returns the offset of every 256th name.
fn compress(names: &[Vec<u8>], tokens: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let codes: BTreeMap<&[u8], u8> = (0u8..=255)
        .zip(tokens)
        .filter(|(_, t)| !t.is_empty())
        .map(|(c, t)| (t.as_slice(), c))
        .collect();
    let (mut out, mut markers) = (Vec::new(), Vec::new());
    for (number, name) in names.iter().enumerate() {
        if number % MARKER_STEP == 0 {
            markers.extend_from_slice(&u32::try_from(out.len()).unwrap_or(0).to_le_bytes());
        }
        let mut rest = name.as_slice();
        let mut spelled = Vec::new();
        while !rest.is_empty() {
            let longest = (1..=rest.len().min(6)).rev().find_map(|n| {
                let (piece, after) = rest.split_at_checked(n)?;
                codes.get(piece).map(|&code| (code, after))
            });
            // Every byte that occurs is a token, so a token always matches.
            let Some((code, after)) = longest else { break };
            spelled.push(code);
            rest = after;
        }
        let length = spelled.len();
        let low = u8::try_from(length & 0x7f).unwrap_or(0);
        if length > 0x7f {
            out.extend([low | 0x80, u8::try_from(length >> 7).unwrap_or(0)]);
        } else {
            out.push(low);
        }
        out.extend_from_slice(&spelled);
    }
    (out, markers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A position in the table as an index.
    fn index(at: u64) -> usize {
        usize::try_from(at).unwrap()
    }

    fn u32_at(bytes: &[u8], at: u64) -> u32 {
        u32::from_le_bytes(bytes[index(at)..][..4].try_into().unwrap())
    }

    /// Decodes a table by the rules of the kernel's `kallsyms_expand_symbol` and
    /// `kallsyms_sym_address`.
    fn decode(bytes: &[u8], parts: &Parts, at: u64) -> Vec<Symbol> {
        let mut place = index(parts.names);
        (0..u64::from(u32_at(bytes, parts.num_syms)))
            .map(|i| {
                if i % 256 == 0 {
                    let marker = u32_at(bytes, parts.markers + i / 256 * 4);
                    assert_eq!(place as u64, parts.names + u64::from(marker));
                }
                let mut length = usize::from(bytes[place]);
                place += 1;
                if length & 0x80 != 0 {
                    length = length & 0x7f | usize::from(bytes[place]) << 7;
                    place += 1;
                }
                let mut text = Vec::new();
                for &code in &bytes[place..place + length] {
                    let entry = index(parts.token_index) + 2 * usize::from(code);
                    let start = usize::from(u16::from_le_bytes([bytes[entry], bytes[entry + 1]]));
                    let token = &bytes[index(parts.token_table) + start..];
                    text.extend(token.iter().take_while(|&&b| b != 0));
                }
                place += length;
                let offset = i64::from(u32_at(bytes, parts.offsets + 4 * i).cast_signed());
                let address = match parts.relative_base {
                    None => (at + parts.offsets + 4 * i).wrapping_add_signed(offset),
                    Some(base) => {
                        let base =
                            u64::from_le_bytes(bytes[index(base)..][..8].try_into().unwrap());
                        if offset < 0 {
                            base - 1 + offset.unsigned_abs()
                        } else {
                            offset.unsigned_abs()
                        }
                    }
                };
                let text = String::from_utf8(text).unwrap();
                Symbol { address, kind: text.chars().next().unwrap(), name: text[1..].to_owned() }
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn names_and_addresses_survive(
            names in prop::collection::vec("[a-z_]{1,30}|[A-Z.]{200}", 1..700),
            layout in 0usize..3,
        ) {
            let layout = [
                KallsymsLayout::OffsetsFirst,
                KallsymsLayout::OffsetsLast,
                KallsymsLayout::SelfRelative,
            ][layout];
            let base = 0xffff_ffff_8120_0000u64;
            let zero_based = layout != KallsymsLayout::SelfRelative;
            let symbols: Vec<_> = (0u64..).zip(names).map(|(i, name)| {
                let address = if i < 3 && zero_based { i * 64 } else { base + i * 16 };
                Symbol { address, kind: 'T', name }
            }).collect();
            let at = base + 0x50_0000;
            let (bytes, parts) = encode(&symbols, layout, at, base);
            prop_assert_eq!(decode(&bytes, &parts, at), symbols);
        }
    }

    #[test]
    fn parts_lie_in_the_order_of_the_kernels() {
        let symbols: Vec<_> = (0..600)
            .map(|i| Symbol {
                address: 0xffff_ffff_8100_0000 + i * 8,
                kind: 't',
                name: format!("function_{i}"),
            })
            .collect();
        let order = |layout| {
            let (bytes, p) = encode(&symbols, layout, 0xffff_ffff_8180_0000, 0xffff_ffff_8100_0000);
            // Introspection finds the table by its digit tokens.
            assert!(
                bytes
                    .windows(20)
                    .any(|w| w == *b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")
            );
            p
        };
        let first = order(KallsymsLayout::OffsetsFirst);
        assert!(first.offsets < first.num_syms && first.token_index > first.token_table);
        let last = order(KallsymsLayout::OffsetsLast);
        assert!(
            last.num_syms == 0
                && last.offsets > last.token_index
                && last.relative_base > Some(last.offsets)
        );
        assert_eq!(order(KallsymsLayout::SelfRelative).relative_base, None);
    }
}
