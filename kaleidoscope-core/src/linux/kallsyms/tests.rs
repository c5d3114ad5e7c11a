//! Every layout is read back as written; malformed tables are rejected or harmless.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use super::synthetic::{
    BASE, Encoding, Entry, LAYOUTS, Layout, Synthetic, image, image_without_banner,
};
use super::*;
use proptest::prelude::*;

fn find(image: &[u8]) -> Result<Kallsyms<'_>, KallsymsError> {
    Kallsyms::find(image, Gva(BASE), &KallsymsHints::default())
}

/// Realistic function names with some consecutive duplicates, and one name of more than 127 tokens.
fn names(count: usize) -> Vec<String> {
    let stems = [
        "sys_read",
        "get_page",
        "__lock",
        "init",
        "page",
        "pages",
        "xas_load",
        "a.isra.0",
        "vm_area_alloc",
    ];
    let mut names: Vec<String> =
        (0..count).map(|i| format!("{}_{}", stems[i % stems.len()], i / 2)).collect();
    names[count / 2] = "q7".repeat(120);
    names
}

fn read_back(table: &Kallsyms<'_>) -> Vec<Entry> {
    let entry =
        |symbol: Symbol| Entry { address: symbol.address.0, kind: symbol.kind, name: symbol.name };
    table.iter().map(entry).collect()
}

fn layout_of(encoding: Encoding) -> Layout {
    LAYOUTS.iter().find(|(_, layout)| layout.encoding == encoding).unwrap().1
}

#[test]
fn every_layout_is_read_back() {
    for (kernel, layout) in LAYOUTS {
        // Counts around multiples of the marker distance and of the alignment.
        for count in [515, 766, 767, 768, 1023] {
            let Synthetic { image, entries, .. } = image(layout, &names(count));
            let table =
                find(&image).unwrap_or_else(|error| panic!("{kernel}, {count} names: {error}"));
            assert_eq!(table.len(), entries.len(), "{kernel}");
            assert_eq!(read_back(&table), entries, "{kernel}");
            for i in [0, 1, 255, 256, 511, 512, count] {
                let (found, entry) = (table.symbol(i).unwrap(), &entries[i]);
                assert_eq!(
                    (found.address.0, found.kind, &found.name),
                    (entry.address, entry.kind, &entry.name),
                    "{kernel}"
                );
            }
            assert_eq!((table.symbol(entries.len()), table.address(entries.len())), (None, None));
        }
    }
}

#[test]
fn without_a_banner_the_addresses_decide() {
    for (kernel, layout) in LAYOUTS {
        let Synthetic { image, entries, .. } = image_without_banner(layout, &names(600));
        assert_eq!(read_back(&find(&image).unwrap()), entries, "{kernel}");
    }
}

#[test]
fn right_hints_lead_to_the_same_table_and_wrong_ones_too() {
    for (kernel, layout) in LAYOUTS {
        let Synthetic { image, token_table, .. } = image(layout, &names(600));
        let table = find(&image).unwrap();
        for token_table in [token_table, Gva(token_table.0 + 8), Gva(0), Gva(u64::MAX)] {
            for read_only_data in
                [None, Some(token_table), Some(Gva(BASE + 0x6000)), Some(Gva(u64::MAX))]
            {
                let hints = KallsymsHints { token_table: Some(token_table), read_only_data };
                let hinted = Kallsyms::find(&image, Gva(BASE), &hints).unwrap();
                assert_eq!(
                    (hinted.len(), hinted.addressing()),
                    (table.len(), table.addressing()),
                    "{kernel}"
                );
            }
        }
    }
}

#[test]
fn lookup_takes_the_first_of_equal_names_and_reports_the_missing() {
    let mut names = names(700);
    names[100] = "twice".into();
    names[200] = "twice".into();
    let Synthetic { image, entries, .. } = image(LAYOUTS[0].1, &names);
    let table = find(&image).unwrap();
    let wanted = [
        "twice",
        "page",
        "page_2",
        "linux_banner",
        "twice",
        "pages_2",
        "",
        "linux_bann",
        "linux_banners",
        "ü",
        &names[350],
    ];
    let expected = wanted.map(|name| {
        entries.iter().find(|entry| entry.name == name).map(|entry| Gva(entry.address))
    });
    assert_eq!(table.lookup(&wanted), expected);
    assert_eq!(expected.iter().flatten().count(), 6);
    assert!(table.lookup(&[]).is_empty());
}

#[test]
fn the_nearest_symbol_before_an_address_is_found() {
    let Synthetic { image, entries, .. } = image(layout_of(Encoding::SelfRelative), &names(600));
    let table = find(&image).unwrap();
    for entry in &entries {
        for distance in [0, 1, 15] {
            assert_eq!(table.symbol_at(Gva(entry.address + distance)).unwrap().name, entry.name);
        }
    }
    assert_eq!(table.symbol_at(Gva(BASE - 1)), None);
    assert_eq!(table.symbol_at(Gva(u64::MAX)).unwrap().name, "linux_banner");
}

#[test]
fn a_decoy_does_not_end_the_search() {
    let decoys = image(LAYOUTS[0].1, &names(600));
    let mut bytes = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0".repeat(6);
    // A token table with nothing before it.
    bytes.extend_from_slice(&decoys.image[usize::try_from(decoys.token_table.0 - BASE).unwrap()..]);
    bytes.resize(0x4000, 0);
    let real = image(LAYOUTS[4].1, &names(600));
    bytes.extend_from_slice(&real.image);
    let table = Kallsyms::find(&bytes, Gva(BASE - 0x4000), &KallsymsHints::default()).unwrap();
    assert_eq!(read_back(&table), real.entries);
}

#[test]
fn errors_say_how_far_it_got() {
    let Synthetic { image, token_table, names_at, offsets_at, entries } =
        image(LAYOUTS[2].1, &names(600));
    let none = KallsymsError::NoTokenTable { image: Gva(BASE), image_bytes: 0x1000 };
    assert_eq!(find(&image[..0x1000]).unwrap_err(), none);

    let mut broken = image.clone();
    broken[names_at] ^= 1;
    assert_eq!(find(&broken).unwrap_err(), KallsymsError::NoNames { token_table });

    let no_addresses =
        KallsymsError::NoAddresses { names: Gva(BASE + names_at as u64), symbols: entries.len() };
    let mut broken = image.clone();
    broken[offsets_at..offsets_at + 4 * entries.len()].fill(0x55);
    assert_eq!(find(&broken).unwrap_err(), no_addresses);

    let mut broken = image;
    broken[0x7000] = b'l';
    assert_eq!(find(&broken).unwrap_err(), no_addresses, "linux_banner must point at the banner");
}

/// Calls every function; results do not matter.
fn exercise(bytes: &[u8], hints: &KallsymsHints) {
    if let Ok(table) = Kallsyms::find(bytes, Gva(BASE), hints) {
        let _ = table.lookup(&["linux_banner", "page_3", "nothing", ""]);
        let _ = (
            table.symbol_at(Gva(BASE + 0x100)),
            table.symbol_at(Gva(0)),
            table.symbol(table.len() / 2),
        );
        assert!(table.iter().count() <= table.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_names_are_read_back(
        names in proptest::collection::vec("[a-z_][a-zA-Z0-9_.$]{0,40}", 513..600),
        layout in 0..LAYOUTS.len(),
        wanted in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let Synthetic { image, entries, .. } = image(LAYOUTS[layout].1, &names);
        let table = find(&image).unwrap();
        prop_assert_eq!(read_back(&table), entries.clone());
        let name_at = |i: &prop::sample::Index| &*entries[i.index(entries.len())].name;
        let wanted: Vec<&str> = wanted.iter().map(name_at).collect();
        let first = |name: &&str| {
            let entry = entries.iter().find(|entry| entry.name == *name);
            entry.map(|entry| Gva(entry.address))
        };
        prop_assert_eq!(table.lookup(&wanted), wanted.iter().map(first).collect::<Vec<_>>());
    }

    #[test]
    fn flipped_bits_do_no_harm(
        layout in 0..LAYOUTS.len(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..24),
        cut in any::<prop::sample::Index>(),
        token_table in proptest::option::of(0..0x1_0000_u64),
    ) {
        let Synthetic { mut image, .. } = image(LAYOUTS[layout].1, &names(520));
        let tables = super::synthetic::TEXT_BYTES;
        for (at, bit) in flips {
            let at = tables + at.index(image.len() - tables);
            image[at] ^= 1_u8 << bit;
        }
        let token_table = token_table.map(|at| Gva(BASE + at));
        let hints = KallsymsHints { token_table, read_only_data: None };
        exercise(&image, &hints);
        image.truncate(tables + cut.index(image.len() - tables));
        exercise(&image, &hints);
    }
}
