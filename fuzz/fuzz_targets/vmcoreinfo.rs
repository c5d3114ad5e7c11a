//! Any bytes as the page in which a kernel describes itself.
#![no_main]

use kaleidoscope_core::internals::vmcoreinfo::{SIGNATURE, VmcoreInfo};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let signed = [SIGNATURE, data].concat();
    for page in [data, &signed] {
        let info = match VmcoreInfo::parse(page) {
            Ok(info) => info,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                continue;
            }
        };
        for (key, value) in info.entries() {
            assert!(key.chars().chain(value.chars()).all(|c| c.is_ascii() && !c.is_control()));
        }
        let _ = (info.os_release(), info.build_id(), info.page_size(), info.phys_base());
        let _ = (info.kernel_offset(), info.crash_time(), info.config("X86_64"));
        for name in ["_stext", "page", "page.flags", "PG_lru", "zone.free_area", ""] {
            let _ = (info.symbol(name), info.size(name), info.offset(name));
            let _ = (info.length(name), info.number(name), info.value(name));
        }
    }
});
