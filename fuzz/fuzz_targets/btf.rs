//! Any bytes as type information, and all questions that can be asked of it.
#![no_main]

use kaleidoscope_core::internals::btf::{Btf, MAGIC, TypeId};
use libfuzzer_sys::fuzz_target;

const PATHS: [&str; 8] = [
    "page.flags",
    "page.mapping",
    "task_struct.sched_info.last_arrival",
    "dentry.d_u.d_alias",
    "mount.mnt.mnt_root",
    "a.b.c",
    "page.",
    ".",
];

fn ask(btf: &Btf<'_>) {
    let names: Vec<&str> = PATHS.iter().filter_map(|p| p.split('.').next()).collect();
    let types = btf.index(&names);
    for path in PATHS {
        let _ = types.member(path);
    }
    for name in names {
        let _ = (types.size(name), types.enum_value(name, "PG_lru"));
        for found in types.structs_named(name) {
            let _ = (found.name(), found.size(), found.members().take(64).count());
            let _ = found.member("lru");
        }
        let constants = types.enum_named(name).map(|e| e.constants().count());
        assert!(constants.is_none_or(|n| n <= 1 << 13));
    }
    let count = u32::try_from(btf.type_count()).expect("types are counted in 32 bits");
    for id in (0..=count.min(500)).chain([count, u32::MAX]).map(TypeId) {
        let _ = (btf.type_size(id), btf.array_len(id), btf.array_element(id), btf.pointee(id));
        let _ = (btf.structure(id).is_some(), btf.type_name(id));
    }
}

fuzz_target!(|data: &[u8]| {
    match Btf::parse(data) {
        Ok(btf) => ask(&btf),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // With the magic at hand, mutations reach further.
    let mut image = b"padding!".to_vec();
    image.extend(MAGIC);
    image.extend(data);
    if let Ok(btf) = Btf::find(&image) {
        ask(&btf);
    }
});
