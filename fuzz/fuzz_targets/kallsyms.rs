//! Any bytes as a kernel image that is searched for a symbol table; and a synthetic kernel's image, with bytes of its symbol table
//! changed: each six bytes of input are a place and what to write there.
#![no_main]

use kaleidoscope_core::addr::{Gpa, Gva};
use kaleidoscope_core::internals::kallsyms::{Kallsyms, KallsymsHints, MAX_NAME_BYTES};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_fuzz::{Input, guest};
use kaleidoscope_mock::linux::KernelStyle;
use libfuzzer_sys::fuzz_target;
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Where an image of any bytes is said to be.
const IMAGE: Gva = Gva(0xffff_ffff_8100_0000);

/// A synthetic kernel's image.
struct Kernel {
    start: Gva,
    bytes: Vec<u8>,
    /// Where in the bytes the symbol table is.
    table: Range<usize>,
}

static KERNELS: LazyLock<Mutex<Vec<Kernel>>> =
    LazyLock::new(|| Mutex::new(KernelStyle::ALL.map(kernel).into()));

fn kernel(style: KernelStyle) -> Kernel {
    let guest = guest(style);
    let truth = &guest.truth.kernel;
    let offset =
        |gva: Gva| usize::try_from(gva.0 - truth.text.start.0).expect("it is in the image");
    let table = offset(truth.kallsyms.0)..offset(Gva(truth.kallsyms.0.0 + truth.kallsyms.1));
    let mut bytes = vec![0; offset(truth.rodata.end)];
    let gpa = Gpa(truth.text.start.0.wrapping_sub(truth.image_offset));
    guest.memory.read(gpa, &mut bytes).expect("the image is in RAM");
    let hints = KallsymsHints::default();
    assert!(Kallsyms::find(&bytes, truth.text.start, &hints).is_ok(), "else little is fuzzed");
    Kernel { start: truth.text.start, bytes, table }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (flags, at) = (input.u8(), u64::from(input.u16()));
    let hint = |bit: u8, gva: u64| (flags & bit != 0).then_some(Gva(gva));
    if flags & 4 == 0 {
        let (token_table, read_only_data) = (hint(1, IMAGE.0 + at), hint(2, IMAGE.0 + at));
        return search(input.rest(), IMAGE, &KallsymsHints { token_table, read_only_data });
    }
    let mut kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    let style = usize::from(flags >> 4) % kernels.len();
    let Kernel { start, bytes, table } = &mut kernels[style];
    let mut undo = Vec::new();
    while !input.is_empty() {
        let place = u32::from_le_bytes([input.u8(), input.u8(), input.u8(), 0]);
        let place = table.start + usize::try_from(place).expect("24 bits") % table.len();
        for (place, new) in (place..table.end).zip(input.bytes::<3>()) {
            undo.push((place, std::mem::replace(&mut bytes[place], new)));
        }
    }
    let near = start.0 + table.start as u64;
    let (token_table, read_only_data) = (hint(1, near + at), hint(2, near));
    search(bytes, *start, &KallsymsHints { token_table, read_only_data });
    for (place, old) in undo.into_iter().rev() {
        bytes[place] = old;
    }
});

fn search(image: &[u8], start: Gva, hints: &KallsymsHints) {
    let found = match Kallsyms::find(image, start, hints) {
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
    // The naive search must agree, while there are few symbols.
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
}
