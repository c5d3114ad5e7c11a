//! Any bytes as a kernel image that is searched for a symbol table.
#![no_main]

use kaleidoscope_core::addr::Gva;
use kaleidoscope_core::linux::kallsyms::{Kallsyms, KallsymsHints, MAX_NAME_BYTES};
use kaleidoscope_fuzz::Input;
use libfuzzer_sys::fuzz_target;

const IMAGE: Gva = Gva(0xffff_ffff_8100_0000);

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (flags, at) = (input.u8(), u64::from(input.u16()));
    let hint = |bit: u8| (flags & bit != 0).then_some(Gva(IMAGE.0 + at));
    let hints = KallsymsHints { token_table: hint(1), read_only_data: hint(2) };
    let found = match Kallsyms::find(input.rest(), IMAGE, &hints) {
        Ok(found) => found,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(!found.is_empty() && found.symbol(found.len()).is_none());
    let mut seen = 0;
    for symbol in found.iter().take(2000) {
        assert!(symbol.name.chars().count() <= MAX_NAME_BYTES);
        seen += 1;
    }
    assert!(seen <= found.len());
    let wanted = ["linux_banner", "init_task", "vmemmap_base", "", "a", "swapper_pg_dir"];
    let addresses = found.lookup(&wanted);
    // The naive search must agree, for names that are not cut and while there are few symbols.
    if found.len() < 4000 {
        for (name, address) in wanted.iter().zip(addresses).filter(|(name, _)| !name.is_empty()) {
            let naive = found.iter().find(|s| s.name == *name).map(|s| s.address);
            assert_eq!(address, naive, "{name}");
        }
    }
    for place in [0, found.len() / 2, found.len() - 1] {
        let _ = found.symbol(place);
        let _ = found.address(place).and_then(|address| found.symbol_at(address));
    }
});
