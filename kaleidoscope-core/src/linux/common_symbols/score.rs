//! Common-symbol hints for the pages of a kernel image.

use super::CommonSymbols;
use crate::addr::{FRAME_SIZE, Gva};
use crate::color::Temperature;
use crate::linux::kallsyms::{Kallsyms, NameHash};
use crate::linux::locate::ImageSpan;

/// Minimum mean heat of the symbols of a [`Temperature::FREQUENT`] page, in hundredths. Low, to
/// miss few pages.
const FREQUENT_SCORE: u32 = 10;

/// Minimum mean heat of the symbols of a [`Temperature::COMMON`] page, in hundredths. High, to
/// include few unneeded pages.
const COMMON_SCORE: u32 = 60;

/// Maximum number of pages of one symbol to count; further pages of a larger symbol are ignored.
pub(super) const MAX_PARTS: u32 = 64;

/// Calls `found` with each symbol, each page of the image that the symbol overlaps, and the page's
/// number in the symbol. A symbol extends to the start of the next one.
///
/// The number of calls is at most the number of symbols and pages together: a symbol below an
/// earlier one, which occurs only in hostile tables, counts in its first page only.
pub(super) fn over_pages<S>(
    symbols: impl Iterator<Item = (Gva, S)>,
    image: &ImageSpan,
    mut found: impl FnMut(&S, u32, u32),
) {
    let offset = |gva: Gva| gva.0.checked_sub(image.gva.0).filter(|&offset| offset < image.bytes);
    let page = |offset: u64| u32::try_from(offset / FRAME_SIZE).unwrap_or(u32::MAX);
    let mut cover = |symbol: &S, start: u64, end: u64, highest: u64| {
        let last = if start < highest { start } else { end.saturating_sub(1).max(start) };
        let first = page(start);
        // Fast path: nearly all symbols lie in one page.
        if page(last) == first {
            return found(symbol, first, 0);
        }
        for (part, page) in (0..MAX_PARTS).zip(first..=page(last)) {
            found(symbol, page, part);
        }
    };
    let mut held: Option<(u64, S)> = None;
    let mut highest = 0;
    for (gva, symbol) in symbols {
        let Some(start) = offset(gva) else { continue };
        if let Some((before, symbol)) = held.replace((start, symbol)) {
            cover(&symbol, before, start, highest);
            highest = highest.max(before);
        }
    }
    // The end of the last symbol is unknown.
    if let Some((start, symbol)) = held {
        cover(&symbol, start, start, highest);
    }
}

/// Sums over the symbols in a page.
#[derive(Clone, Copy, Default)]
struct PageScore {
    tenths: u32,
    symbols: u32,
}

impl PageScore {
    fn hints(self) -> Temperature {
        let reaches = |score: u32| {
            self.symbols > 0 && self.tenths.saturating_mul(10) >= self.symbols.saturating_mul(score)
        };
        let mut hints = Temperature::NONE;
        if reaches(FREQUENT_SCORE) {
            hints.insert(Temperature::FREQUENT);
        }
        if reaches(COMMON_SCORE) {
            hints.insert(Temperature::COMMON);
        }
        hints
    }
}

/// For each page of the kernel image, whether it holds symbols that most workloads use. Empty if
/// the list is empty.
pub(crate) fn hints_of_pages(
    kallsyms: &Kallsyms<'_>,
    image: &ImageSpan,
    common: &CommonSymbols,
) -> Vec<Temperature> {
    if common.is_empty() {
        return Vec::new();
    }
    let parts = part_hashes();
    let pages = usize::try_from(image.bytes.div_ceil(FRAME_SIZE)).unwrap_or(0);
    let mut scores = vec![PageScore::default(); pages];
    over_pages(kallsyms.hashes(), image, |name, page, part| {
        let name = match part {
            0 => *name,
            _ => usize::try_from(part)
                .ok()
                .and_then(|part| parts.get(part))
                .map_or(*name, |part| name.then(*part)),
        };
        let score = usize::try_from(page).ok().and_then(|page| scores.get_mut(page));
        if let Some(score) = score {
            score.tenths = score.tenths.saturating_add(common.tenths(name));
            score.symbols = score.symbols.saturating_add(1);
        }
    });
    scores.into_iter().map(PageScore::hints).collect()
}

/// Hashes of the name suffixes of a symbol's later pages; see [`part_name`].
fn part_hashes() -> Vec<NameHash> {
    (0..MAX_PARTS).map(|part| NameHash::of(part_name("", part).as_bytes())).collect()
}

/// Name of a page of a symbol: the symbol's name for the first page, `NAME+1` for the second.
pub(super) fn part_name(name: &str, part: u32) -> String {
    if part == 0 { name.to_owned() } else { format!("{name}+{part}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::linux::kallsyms::KallsymsHints;
    use crate::linux::kallsyms::synthetic::{self, BASE, Encoding, LAYOUTS, Layout};

    fn image(bytes: u64) -> ImageSpan {
        ImageSpan { gva: Gva(BASE), gpa: Gpa(0), bytes }
    }

    fn covered(symbols: &[(u64, &'static str)], bytes: u64) -> Vec<(&'static str, u32, u32)> {
        let mut out = Vec::new();
        let symbols = symbols.iter().map(|&(offset, name)| (Gva(BASE.wrapping_add(offset)), name));
        over_pages(symbols, &image(bytes), |name, page, part| out.push((*name, page, part)));
        out
    }

    #[test]
    fn a_symbol_reaches_to_the_next() {
        let symbols =
            [(u64::MAX, "before"), (0x10, "a"), (0x1000, "b"), (0x1000, "c"), (0x3001, "d")];
        let expected =
            [("a", 0, 0), ("b", 1, 0), ("c", 1, 0), ("c", 2, 1), ("c", 3, 2), ("d", 3, 0)];
        assert_eq!(covered(&symbols, 0x8000), expected);
        assert_eq!(covered(&[(0x8000, "behind")], 0x8000), []);
        let large = covered(&[(0, "large"), (0x7f_f000, "end")], 0x80_0000);
        assert_eq!(large.len(), 65);
        assert_eq!(large[63], ("large", 63, 63));
    }

    #[test]
    fn going_back_covers_one_page() {
        let symbols: Vec<_> =
            (0..1000).map(|i| (if i % 2 == 0 { 0 } else { 0x4_0000 }, "x")).collect();
        assert!(covered(&symbols, 0x8_0000).len() < 1100);
    }

    /// Hints for an image with a symbol every 16 bytes, 256 per page.
    fn hints(layout: Layout, names: &[String], common: &CommonSymbols) -> Vec<Temperature> {
        let image = synthetic::image(layout, names);
        let table = Kallsyms::find(&image.image, Gva(BASE), &KallsymsHints::default()).unwrap();
        hints_of_pages(&table, &super::tests::image(0x8000), common)
    }

    #[test]
    fn pages_are_judged_by_the_mean_of_their_symbols() {
        let both = Temperature::FREQUENT | Temperature::COMMON;
        for (kernel, layout) in LAYOUTS {
            // Per-CPU symbols, which lie outside the image, come first.
            let per_cpu = if layout.encoding == Encoding::AbsolutePerCpu { 64 } else { 0 };
            let names: Vec<String> = (0..1024).map(|i| format!("page_{i}")).collect();
            // Symbols with a heat of 0.9: 171 of 256 in the first page, 170 in the second, 29 and
            // 28 in the next two.
            let heated = [(0, 171), (1, 170), (2, 29), (3, 28)];
            let heats = heated.into_iter().flat_map(|(page, count)| {
                (0..count).map(move |i| (format!("page_{}", per_cpu + page * 256 + i), 9))
            });
            let common = CommonSymbols::from(&heats.collect::<super::super::SymbolScores>());
            let hints = hints(layout, &names, &common);
            let fourth = if per_cpu == 0 { Temperature::NONE } else { Temperature::FREQUENT };
            let expected = [both, Temperature::FREQUENT, Temperature::FREQUENT, fourth];
            assert_eq!(hints[..4], expected, "{kernel}");
            assert_eq!(hints.len(), 8);
            assert_eq!(hints[4..], [Temperature::NONE; 4], "{kernel}");
            let none = CommonSymbols::none();
            assert!(super::tests::hints(layout, &names, &none).is_empty());
        }
    }

    #[test]
    fn later_pages_of_a_symbol_have_names_of_their_own() {
        let (_, layout) = LAYOUTS[4];
        // The last function extends from page 2 to the banner, at the start of page 7.
        let names: Vec<String> = (0..520).map(|i| format!("page_{i}")).collect();
        let heats = [("page_519+1", 9), ("page_519+3", 4), ("linux_banner", 9)];
        let heats = heats.map(|(name, heat)| (name.to_owned(), heat)).into_iter();
        let common = CommonSymbols::from(&heats.collect::<super::super::SymbolScores>());
        let hints = hints(layout, &names, &common);
        let (none, frequent) = (Temperature::NONE, Temperature::FREQUENT);
        let both = frequent | Temperature::COMMON;
        assert_eq!(hints, [none, none, none, both, none, frequent, none, both]);
    }
}
