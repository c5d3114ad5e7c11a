//! All kinds, nesting and bitfields; malformed BTF is rejected or harmless.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use super::synthetic::Builder;
use super::*;
use proptest::prelude::*;

/// BTF with types of every kind between the types that are looked up.
fn every_kind() -> Vec<u8> {
    let mut btf = Builder::new();
    let long = btf.int("unsigned long", 8); // 1
    let int = btf.int("int", 4);
    let pointer = btf.add("", 2, false, 0, 0, &[]);
    let row = btf.array(int, 3);
    let table = btf.array(row, 5);
    btf.add("forward", 7, false, 0, 0, &[]);
    let typedef = btf.add("table_t", 8, false, 0, table, &[]);
    let volatile = btf.add("", 9, false, 0, typedef, &[]);
    let constant = btf.add("", 10, false, 0, volatile, &[]);
    let restrict = btf.add("", 11, false, 0, pointer, &[]);
    let proto = btf.add("", 13, false, 2, int, &[0, int, 0, long]);
    let function = btf.add("function", 12, false, 1, proto, &[]);
    let variable = btf.add("variable", 14, false, 0, constant, &[1]);
    btf.add(".data", 15, false, 1, 64, &[variable, 0, 64]);
    let float = btf.add("double", 16, false, 0, 8, &[]);
    btf.add("declaration", 17, false, 0, function, &[u32::MAX]);
    let tag = btf.add("user", 18, false, 0, int, &[]);
    let pair = btf.composite(4, "list_head", 16, &[("next", pointer, 0), ("prev", pointer, 64)]);
    let inner = btf.composite(4, "", 24, &[("lru", pair, 0), ("mapping", pointer, 128)]);
    let qualified = btf.add("", 10, false, 0, inner, &[]);
    let other = btf.bitfields(
        5,
        "",
        8,
        &[("whole", long, 0, 0), ("low", int, 0, 3), ("high", int, 13, 19)],
    );
    let union = btf.composite(5, "", 24, &[("", qualified, 0), ("rcu", long, 0), ("", other, 64)]);
    let pairs = btf.array(pair, 4);
    btf.composite(
        4,
        "page",
        128,
        &[("flags", long, 0), ("", union, 64), ("table", constant, 256), ("lists", pairs, 736)],
    );
    btf.composite(4, "twin", 4, &[("first", int, 0)]);
    btf.composite(5, "twin", 8, &[("second", long, 0)]);
    btf.add("handle_t", 8, false, 0, inner, &[]);
    btf.enumeration("pageflags", false, &[("PG_locked", 0), ("PG_high", i32::MIN)]);
    btf.enumeration("state", true, &[("DEAD", -4)]);
    btf.enumeration64("wide", &[("ALL", u64::MAX), ("BIT_40", 1 << 40)]);
    btf.composite(
        4,
        "last",
        40,
        &[("float", float, 0), ("restrict", restrict, 64), ("tagged", tag, 128)],
    );
    btf.finish(24)
}

#[test]
fn members_are_found_through_anonymous_structs() {
    let bytes = every_kind();
    let btf = Btf::parse(&bytes).unwrap();
    let types = btf.index(&["last", "page", "list_head", "nothing", "page", ""]);
    let at = |path| {
        types.member(path).map(|member| (member.byte_offset, member.bit_offset, member.bit_size))
    };
    assert_eq!(at("page.flags"), Some((0, 0, None)));
    assert_eq!(at("page.mapping"), Some((24, 0, None)));
    assert_eq!(at("page.lru.prev"), Some((16, 0, None)));
    assert_eq!(at("page.rcu"), Some((8, 0, None)));
    assert_eq!(at("page.whole"), Some((16, 0, None)));
    assert_eq!(at("page.low"), Some((16, 0, Some(3))));
    assert_eq!(at("page.high"), Some((17, 5, Some(19))));
    assert_eq!(at("page.lists.prev"), Some((100, 0, None)), "the first element of an array");
    assert_eq!(
        at("last.tagged"),
        Some((16, 0, None)),
        "every kind before it was skipped by the right size"
    );
    for missing in [
        "page.pr",
        "page.lru.x",
        "page.flags.x",
        "page.",
        "page",
        "nothing.x",
        ".",
        "list_head.mapping",
    ] {
        assert_eq!(at(missing), None, "{missing}");
    }
    let page = types.struct_named("page").unwrap();
    assert_eq!((page.name(), page.size()), (Some("page"), 128));
    assert_eq!(
        page.members().map(|(name, _)| name).collect::<Vec<_>>(),
        ["flags", "table", "lists"]
    );
}

#[test]
fn sizes_and_lengths_are_those_of_the_types_meant() {
    let bytes = every_kind();
    let btf = Btf::parse(&bytes).unwrap();
    let types = btf.index(&["page", "last", "table_t", "forward", "list_head"]);
    let type_of = |path| types.member(path).unwrap().type_id;
    let table = type_of("page.table");
    assert_eq!((btf.type_size(table), btf.array_len(table)), (Some(60), Some(5)));
    let row = btf.array_element(table).unwrap();
    assert_eq!((btf.type_size(row), btf.array_len(row)), (Some(12), Some(3)));
    assert_eq!(btf.array_len(type_of("page.flags")), None);
    assert_eq!(btf.type_size(type_of("last.restrict")), Some(8));
    assert_eq!(btf.pointee(type_of("last.restrict")), Some(TypeId(0)));
    assert_eq!(btf.type_size(type_of("last.float")), Some(8));
    assert_eq!(btf.type_name(type_of("last.float")), Some("double"));
    assert_eq!(btf.structure(type_of("page.lru")).unwrap().name(), Some("list_head"));
    assert_eq!(
        (types.size("page"), types.size("table_t"), types.size("forward")),
        (Some(128), Some(60), None)
    );
    assert_eq!(btf.type_size(TypeId(0)), None);
    assert_eq!(btf.type_size(TypeId(u32::MAX)), None);
}

#[test]
fn of_equal_names_the_one_with_the_members_is_taken() {
    let bytes = every_kind();
    let btf = Btf::parse(&bytes).unwrap();
    let types = btf.index(&["twin", "handle_t"]);
    assert_eq!(types.struct_named("twin").unwrap().size(), 4);
    assert_eq!(types.struct_with("twin", &["second"]).unwrap().size(), 8);
    assert!(types.struct_with("twin", &["first", "second"]).is_none());
    assert!(types.member("twin.second").is_some());
    assert_eq!(
        types.member("handle_t.mapping").unwrap().byte_offset,
        16,
        "a typedef of an anonymous struct"
    );
}

#[test]
fn constants_have_their_sign() {
    let bytes = every_kind();
    let btf = Btf::parse(&bytes).unwrap();
    let types = btf.index(&["pageflags", "state", "wide"]);
    assert_eq!(types.enum_value("pageflags", "PG_locked"), Some(0));
    assert_eq!(types.enum_value("pageflags", "PG_high"), Some(1 << 31));
    assert_eq!(btf.enum_value("state", "DEAD"), Some(-4));
    assert_eq!(types.enum_value("wide", "BIT_40"), Some(1 << 40));
    assert_eq!(types.enum_value("wide", "ALL"), Some(-1));
    assert_eq!(types.enum_value("wide", "NONE"), None);
    let all: Vec<_> = types.enum_named("pageflags").unwrap().constants().collect();
    assert_eq!(all, [("PG_locked", 0), ("PG_high", 1 << 31)]);

    let mut unmarked = Builder::new();
    unmarked.enumeration("state", false, &[("DEAD", -4)]);
    assert_eq!(
        Btf::parse(&unmarked.finish(24)).unwrap().enum_value("state", "DEAD"),
        Some(-4),
        "before signs were marked"
    );
}

#[test]
fn old_bitfields_have_narrow_integer_types() {
    let mut btf = Builder::new();
    let narrow = btf.add("", 1, false, 0, 4, &[5]);
    btf.composite(4, "old", 4, &[("bits", narrow, 9)]);
    let bytes = btf.finish(24);
    let member = Btf::parse(&bytes).unwrap().struct_named("old").unwrap().member("bits").unwrap();
    assert_eq!((member.byte_offset, member.bit_offset, member.bit_size), (1, 1, Some(5)));
}

#[test]
fn the_kernels_btf_is_found_among_others() {
    let mut small = Builder::new();
    small.composite(4, "page", 8, &[]);
    let mut unrelated = Builder::new();
    (0..500).for_each(|_| _ = unrelated.int("int", 4));
    let kernel = every_kind();
    let image = [
        b"abc",
        &*small.finish(24),
        &super::MAGIC,
        &*unrelated.finish(24),
        &[0; 9],
        &*kernel,
        &[1; 99],
    ]
    .concat();
    let btf = Btf::find(&image).unwrap();
    assert_eq!(btf.type_count(), Btf::parse(&kernel).unwrap().type_count());
    let none = Btf::find(&unrelated.finish(24)).unwrap_err();
    assert!(matches!(none, BtfError::NotFound { candidates: 1, .. }), "{none}");
}

#[test]
fn a_longer_header_is_skipped() {
    let mut btf = Builder::new();
    btf.composite(4, "page", 8, &[]);
    assert_eq!(Btf::find(&btf.finish(32)).unwrap().struct_named("page").unwrap().size(), 8);
}

#[test]
fn errors_name_the_place() {
    let error = |bytes: &[u8]| Btf::parse(bytes).unwrap_err();
    assert_eq!(error(&[1, 2]), BtfError::NoMagic { found: [1, 2, 0, 0] });
    let bytes = every_kind();
    assert!(matches!(error(&bytes[..20]), BtfError::BadSection { section: "header", .. }));
    assert!(matches!(
        error(&bytes[..bytes.len() - 1]),
        BtfError::BadSection { section: "string", .. }
    ));
    assert!(matches!(error(&bytes[..64]), BtfError::BadSection { section: "type", .. }));
    let changed = |at: usize, value: u32| {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        error(&bytes)
    };
    assert!(matches!(changed(4, 23), BtfError::BadSection { section: "header", length: 23, .. }));
    assert!(
        matches!(changed(16, 0), BtfError::BadSection { section: "string", .. }),
        "overlapping sections"
    );
    assert_eq!(changed(bytes.len() - 4, u32::MAX), BtfError::BadStrings);
    assert_eq!(changed(24 + 4, 20 << 24), BtfError::UnknownKind { id: 1, offset: 0, kind: 20 });
    assert_eq!(
        changed(24 + 16 + 4, 4 << 24 | 0xffff),
        BtfError::TruncatedType { id: 2, offset: 16 }
    );
}

#[test]
fn types_that_refer_to_themselves_end() {
    let mut btf = Builder::new();
    btf.add("loop_t", 8, false, 0, 1, &[]);
    btf.array(2, 2);
    let anonymous: Vec<_> = (0..2000).map(|_| ("", 3, 0)).collect();
    btf.composite(4, "page", 8, &anonymous);
    let bytes = btf.finish(24);
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!(
        (btf.type_size(TypeId(1)), btf.type_size(TypeId(2)), btf.array_len(TypeId(1))),
        (None, None, None)
    );
    assert!(btf.structure(TypeId(1)).is_none());
    // Without a budget, the search would examine 2000 to the power of 12 members.
    assert!(btf.struct_named("page").unwrap().member("x").is_none());
    assert!(btf.struct_named("page").unwrap().member_path("x.y").is_none());
}

/// Calls every function; results do not matter.
fn exercise(bytes: &[u8]) {
    let _ = Btf::find(bytes);
    let Ok(btf) = Btf::parse(bytes) else { return };
    let names = ["page", "twin", "pageflags", "wide", "last", "table_t"];
    let types = btf.index(&names);
    for name in names {
        let _ = (types.size(name), types.enum_value(name, "ALL"), types.member("page.lru.prev"));
        if let Some(found) = types.struct_named(name) {
            for (member, id) in found.members() {
                let _ = (
                    found.member(member),
                    btf.type_size(id),
                    btf.array_len(id),
                    btf.pointee(id),
                    btf.type_name(id),
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn flipped_bits_do_no_harm(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..16),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = every_kind();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
        }
        exercise(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        exercise(&bytes);
    }

    #[test]
    fn any_struct_is_read_back(
        members in proptest::collection::vec(
            ("[a-z_]{1,12}", 0..1_u32 << 24, 0..64_u32),
            1..40,
        ),
    ) {
        let mut btf = Builder::new();
        let int = btf.int("int", 4);
        let encoded: Vec<_> =
            members.iter().map(|(name, bits, width)| (name.as_str(), int, *bits, *width)).collect();
        btf.bitfields(4, "it", 99, &encoded);
        let bytes = btf.finish(24);
        let parsed = Btf::parse(&bytes).unwrap();
        let it = parsed.struct_named("it").unwrap();
        for (name, ..) in &members {
            let (_, bits, width) = members.iter().find(|(other, ..)| other == name).unwrap();
            let member = it.member(name).unwrap();
            let offset = member.byte_offset * 8 + u64::from(member.bit_offset);
            prop_assert_eq!(offset, u64::from(*bits));
            prop_assert_eq!(u32::from(member.bit_size.unwrap_or(0)), *width);
        }
    }
}

#[test]
fn names_and_enumerations_without_end_are_cut() {
    let mut builder = Builder::new();
    // The name of the first type is at offset 1 of the strings; 16,384 constants share it.
    builder.int("ok", 4);
    builder.enumeration("pageflags", false, &[(&"x".repeat(1 << 20), 1), (&"y".repeat(512), 2)]);
    builder.add("longest", 6, false, 1 << 14, 4, &[1, 7].repeat(1 << 14));
    let bytes = builder.finish(24);
    let btf = Btf::parse(&bytes).unwrap();
    let types = btf.index(&["pageflags", "longest"]);
    let values = |name| types.enum_named(name).unwrap().constants().map(|c| c.1);
    assert_eq!(values("pageflags").collect::<Vec<_>>(), [2], "512 bytes are a name, more are none");
    assert_eq!(values("longest").count(), 1 << 13);
}

#[test]
fn of_many_types_of_one_name_few_are_kept() {
    let mut builder = Builder::new();
    for size in 1..=100 {
        builder.composite(4, "page", size, &[]);
    }
    let bytes = builder.finish(24);
    let btf = Btf::parse(&bytes).unwrap();
    let sizes: Vec<u64> = btf.index(&["page"]).structs_named("page").map(|p| p.size()).collect();
    assert_eq!(sizes, [1, 2, 3, 4, 5, 6, 7, 8]);
}
