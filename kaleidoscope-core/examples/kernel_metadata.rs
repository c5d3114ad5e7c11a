//! Reads a kernel's own metadata from a flat kernel image or from a guest's memory and prints how long each step took.
//!
//! ```text
//! kernel_metadata FILE [VA] [symbols|types]
//! ```
//! With `VA` (hexadecimal) the file is a kernel image that begins at that address; without, it is memory that has a VMCOREINFO page,
//! with physical addresses as file offsets. `symbols` prints every symbol as `/proc/kallsyms` does.

use kaleidoscope_core::addr::Gva;
use kaleidoscope_core::linux::kallsyms::{Kallsyms, KallsymsHints};
use kaleidoscope_core::linux::vmcoreinfo::{SIGNATURE, VmcoreInfo};
use std::error::Error;
use std::time::{Duration, Instant};

/// What a coloring of the whole guest asks for, roughly.
const WANTED: &[&str] = &[
    "_text",
    "_etext",
    "__start_rodata",
    "__end_rodata",
    "_sdata",
    "_edata",
    "__bss_start",
    "__bss_stop",
    "_end",
    "__init_begin",
    "__init_end",
    "init_task",
    "init_mm",
    "vmemmap_base",
    "page_offset_base",
    "vmalloc_base",
    "mem_section",
    "node_data",
    "contig_page_data",
    "__per_cpu_offset",
    "__per_cpu_start",
    "__per_cpu_end",
    "this_cpu_off",
    "slab_caches",
    "super_blocks",
    "swapper_pg_dir",
    "init_top_pgt",
    "phys_base",
    "pgdir_shift",
    "hugetlb_zero_page",
    "huge_zero_page",
    "huge_zero_folio",
    "empty_zero_page",
    "hstates",
    "swapper_spaces",
    "modules",
    "vmap_area_list",
    "shmem_aops",
    "anon_aops",
    "def_blk_aops",
    "init_pid_ns",
    "init_uts_ns",
    "nr_cpu_ids",
    "__cpu_possible_mask",
    "__cpu_online_mask",
    "totalreserve_pages",
    "high_memory",
    "max_pfn",
    "pcpu_base_addr",
    "linux_banner",
    "__start_BTF",
    "__stop_BTF",
    "kmem_cache",
    "no_such_symbol",
    "kvm_clock",
    "hv_clock_boot",
];

/// Bytes of memory taken for the kernel image when its length is not known.
const IMAGE_BYTES: usize = 64 << 20;

/// Where x86-64 links the kernel's mapping of physical memory.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: kernel_metadata FILE [VA] [symbols|types]")?;
    let rest: Vec<String> = arguments.collect();
    let bytes = std::fs::read(path)?;
    let va =
        rest.iter().find_map(|argument| u64::from_str_radix(argument.strip_prefix("0x")?, 16).ok());

    let (image, va, hints) = match va {
        Some(va) => (bytes.as_slice(), Gva(va), KallsymsHints::default()),
        None => {
            let page = bytes
                .chunks_exact(4096)
                .find(|page| page.starts_with(SIGNATURE))
                .ok_or("no VMCOREINFO page")?;
            let info = VmcoreInfo::parse(page)?;
            let text = info.symbol("_stext").ok_or("no _stext")?;
            let base = info.phys_base().ok_or("no phys_base")?;
            let at = usize::try_from(
                (text.0 - KERNEL_MAP).checked_add_signed(base).ok_or("phys_base")?,
            )?;
            let end = bytes.len().min(at + IMAGE_BYTES);
            let hints = KallsymsHints {
                token_table: info.symbol("kallsyms_token_table"),
                ..KallsymsHints::default()
            };
            (bytes.get(at..end).ok_or("image outside memory")?, text, hints)
        }
    };
    let symbols = Kallsyms::find(image, va, &KallsymsHints::default())?;
    if rest.iter().any(|argument| argument == "symbols") {
        for symbol in symbols.iter() {
            println!("{:016x} {} {}", symbol.address.0, symbol.kind, symbol.name);
        }
        return Ok(());
    }
    println!("{symbols:?}");
    println!(
        "kallsyms, searched  {:?}",
        best_of(|| Kallsyms::find(image, va, &KallsymsHints::default()).is_ok())
    );
    println!("kallsyms, with hint {:?}", best_of(|| Kallsyms::find(image, va, &hints).is_ok()));
    println!("lookup of {:3} names {:?}", WANTED.len(), best_of(|| symbols.lookup(WANTED)));
    for (name, address) in WANTED.iter().zip(symbols.lookup(WANTED)) {
        print!("{name} {} ", address.map_or("-".into(), |address| address.to_string()));
    }
    println!();
    Ok(())
}

/// The shortest of a few runs.
fn best_of<T>(mut step: impl FnMut() -> T) -> Duration {
    let timed = |_| {
        let start = Instant::now();
        std::hint::black_box(step());
        start.elapsed()
    };
    (0..7).map(timed).min().unwrap_or_default()
}
