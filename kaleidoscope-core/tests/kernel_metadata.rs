//! VMCOREINFO, kallsyms and BTF of real kernels, compared with what the guests reported about
//! themselves.
//!
//! `KALEIDOSCOPE_GUESTS` names a directory with a directory for each guest: `ram.bin`, its memory
//! with physical addresses as offsets, and `truth/gt/proc_kallsyms`, its `/proc/kallsyms`.
//! `KALEIDOSCOPE_KERNELS` names a directory with kernels that never ran: `*.flat`, the segments of
//! `vmlinux` laid out by physical address, linked at the usual address.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use kaleidoscope_core::addr::Gva;
use kaleidoscope_core::internals::btf::{Btf, MAGIC};
use kaleidoscope_core::internals::kallsyms::{Kallsyms, KallsymsHints};
use kaleidoscope_core::internals::vmcoreinfo::{SIGNATURE, VmcoreInfo};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const LINKED_AT: Gva = Gva(0xffff_ffff_8100_0000);
const IMAGE_BYTES: usize = 64 << 20;

/// The files in the directory that the environment variable names; if it is unset, none, with a
/// visible notice.
fn files(variable: &str, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let Some(directory) = std::env::var_os(variable) else {
        // Not a print macro, whose output the test harness would capture.
        let text = format!("SKIPPED: real kernels are not checked, {variable} is not set") + "\n";
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        return Vec::new();
    };
    let entries = std::fs::read_dir(&directory).unwrap();
    let found: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| wanted(path)).collect();
    assert!(!found.is_empty(), "{variable}: nothing to check in {}", directory.display());
    found
}

/// A kernel image in a guest's memory, with its first address.
fn image_in<'a>(memory: &'a [u8], info: &VmcoreInfo) -> (&'a [u8], Gva) {
    let text = info.symbol("_stext").unwrap();
    let at = (text.0 - KERNEL_MAP).checked_add_signed(info.phys_base().unwrap()).unwrap();
    let at = usize::try_from(at).unwrap();
    (&memory[at..memory.len().min(at + IMAGE_BYTES)], text)
}

#[test]
fn guests_are_read_as_they_describe_themselves() {
    for guest in files("KALEIDOSCOPE_GUESTS", |path| path.join("truth/gt/proc_kallsyms").exists()) {
        let memory = std::fs::read(guest.join("ram.bin")).unwrap();
        let page = memory.chunks_exact(4096).find(|page| page.starts_with(SIGNATURE)).unwrap();
        let info = VmcoreInfo::parse(page).unwrap();
        let (image, va) = image_in(&memory, &info);

        let table = Kallsyms::find(image, va, &KallsymsHints::default()).unwrap();
        let truth = std::fs::read_to_string(guest.join("truth/gt/proc_kallsyms")).unwrap();
        let of_kernel: Vec<&str> = truth.lines().filter(|line| !line.contains('\t')).collect();
        let read: Vec<String> = table
            .iter()
            .map(|symbol| format!("{:016x} {} {}", symbol.address.0, symbol.kind, symbol.name))
            .collect();
        assert_eq!(read, of_kernel, "{}", guest.display());
        check_lookup(&table);
        check_vmcoreinfo_symbols(&info, &table);

        let hints = KallsymsHints {
            token_table: info.symbol("kallsyms_token_table"),
            read_only_data: None,
        };
        assert_eq!(Kallsyms::find(image, va, &hints).unwrap().len(), table.len());
        check_vmcoreinfo_types(&info, &check_btf(image, va, &table));
    }
}

#[test]
fn kernels_that_never_ran_are_read() {
    for kernel in files("KALEIDOSCOPE_KERNELS", |path| {
        path.extension().is_some_and(|extension| extension == "flat")
    }) {
        let image = std::fs::read(&kernel).unwrap();
        let table = Kallsyms::find(&image, LINKED_AT, &KallsymsHints::default()).unwrap();
        let end = Gva(LINKED_AT.0 + u64::try_from(image.len()).unwrap());
        for symbol in table.iter() {
            let plausible = symbol.name.bytes().all(|byte| byte.is_ascii_graphic())
                && symbol.kind.is_ascii_alphabetic();
            let per_cpu = symbol.address < Gva(1 << 20);
            assert!(
                plausible && (per_cpu || (LINKED_AT..=end).contains(&symbol.address)),
                "{}: {symbol:?}",
                kernel.display()
            );
        }
        assert_eq!(table.lookup(&["_text"]), [Some(LINKED_AT)]);
        check_lookup(&table);
        check_btf(&image, LINKED_AT, &table);
    }
}

/// Checks that looking up every 50th symbol agrees with reading all of them.
fn check_lookup(table: &Kallsyms<'_>) {
    let mut first = HashMap::new();
    let symbols: Vec<_> = table.iter().collect();
    for symbol in &symbols {
        first.entry(symbol.name.as_str()).or_insert(symbol.address);
    }
    let wanted: Vec<&str> = symbols.iter().step_by(50).map(|symbol| symbol.name.as_str()).collect();
    let expected: Vec<_> = wanted.iter().map(|name| first.get(name).copied()).collect();
    assert_eq!(table.lookup(&wanted), expected);
    for (i, symbol) in symbols.iter().enumerate().step_by(997) {
        assert_eq!(table.symbol(i).as_ref(), Some(symbol));
        assert_eq!(table.symbol_at(symbol.address).unwrap().address, symbol.address);
    }
    assert!(symbols.is_sorted_by_key(|symbol| symbol.address));
}

/// Checks that a search finds the BTF between the symbols that delimit it.
fn check_btf<'a>(image: &'a [u8], va: Gva, table: &Kallsyms<'_>) -> Btf<'a> {
    let delimiters = table.lookup(&["__start_BTF", "__stop_BTF"]);
    let at = |i: usize| usize::try_from(delimiters[i].unwrap().0 - va.0).unwrap();
    let bytes = &image[at(0)..at(1)];
    assert!(bytes.starts_with(&MAGIC));
    let btf = Btf::parse(bytes).unwrap();
    let found = Btf::find(image).unwrap();
    assert_eq!(found.type_count(), btf.type_count());
    assert_eq!(btf.struct_named("list_head").unwrap().size(), 16);
    assert_eq!(
        btf.index(&["page"]).member("page._refcount").map(|member| member.byte_offset),
        Some(52)
    );
    found
}

/// Checks that the addresses in VMCOREINFO are those of kallsyms, which omits some.
fn check_vmcoreinfo_symbols(info: &VmcoreInfo, table: &Kallsyms<'_>) {
    let names: Vec<&str> = info.entries().filter_map(|(key, _)| argument(key, "SYMBOL")).collect();
    let found = table.lookup(&names);
    // These are pointers in variables, whose values VMCOREINFO has, or macros that expand to them.
    let values = ["mem_section", "vmemmap"];
    let compared = names.iter().zip(found).filter(|(name, _)| !values.contains(name));
    let agreeing: Vec<_> = compared
        .filter_map(|(name, address)| address.map(|found| (name, Some(found), info.symbol(name))))
        .collect();
    assert!(agreeing.len() > 5);
    agreeing.into_iter().for_each(|(name, found, said)| assert_eq!(found, said, "{name}"));
}

/// Checks that the sizes, offsets and lengths in VMCOREINFO are those of BTF.
fn check_vmcoreinfo_types(info: &VmcoreInfo, btf: &Btf<'_>) {
    let arguments = |function| info.entries().filter_map(move |(key, _)| argument(key, function));
    let names: Vec<&str> = arguments("OFFSET")
        .chain(arguments("SIZE"))
        .chain(arguments("LENGTH"))
        .filter_map(|path| path.split('.').next())
        .collect();
    let types = btf.index(&names);
    let mut compared = 0;
    // Three of them are variables, whose types BTF does not have under these names.
    for path in arguments("OFFSET") {
        assert_eq!(
            types.member(path).map(|member| member.byte_offset),
            info.offset(path),
            "{path}"
        );
        compared += 1;
    }
    for name in arguments("SIZE").filter(|&name| name != "mem_section" && name != "node_data") {
        assert_eq!(types.size(name), info.size(name), "{name}");
        compared += 1;
    }
    for path in arguments("LENGTH").filter(|path| path.contains('.')) {
        let length =
            types.member(path).and_then(|member| btf.array_len(member.type_id)).map(u64::from);
        assert_eq!(length, info.length(path), "{path}");
        compared += 1;
    }
    assert!(compared > 50);
}

/// Returns `argument` of `function(argument)`.
fn argument<'k>(key: &'k str, function: &str) -> Option<&'k str> {
    key.strip_prefix(function)?.strip_prefix('(')?.strip_suffix(')')
}
