//! Reads a kernel's own metadata from a flat kernel image or from a guest's memory and prints how
//! long each step took.
//!
//! ```text
//! kernel_metadata FILE [VA] [symbols|types]
//! ```
//! With `VA` (hexadecimal) the file is a kernel image that begins at that address; without, it is
//! memory that has a VMCOREINFO page, with physical addresses as file offsets. `symbols` prints
//! every symbol as `/proc/kallsyms` does; `types` reads paths like `page.mapping` or `enum
//! pageflags.PG_locked` from standard input, one a line, and prints where they are or what they are
//! worth.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it finds")]

use kaleidoscope_core::addr::Gva;
use kaleidoscope_core::internals::btf::Btf;
use kaleidoscope_core::internals::kallsyms::{Kallsyms, KallsymsHints};
use kaleidoscope_core::internals::vmcoreinfo::{SIGNATURE, VmcoreInfo};
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

/// Structs that a coloring looks into, roughly.
const STRUCTS: &[&str] = &[
    "page",
    "folio",
    "slab",
    "zone",
    "pglist_data",
    "free_area",
    "per_cpu_pages",
    "per_cpu_pageset",
    "kmem_cache",
    "task_struct",
    "mm_struct",
    "vm_area_struct",
    "maple_node",
    "address_space",
    "inode",
    "super_block",
    "dentry",
    "qstr",
    "file",
    "mount",
    "vfsmount",
    "file_system_type",
    "block_device",
    "gendisk",
    "signal_struct",
    "list_head",
    "xarray",
    "xa_node",
    "swap_info_struct",
    "hstate",
    "anon_vma",
    "anon_vma_chain",
    "module",
    "module_memory",
    "module_layout",
    "vmap_area",
    "vm_struct",
    "mem_section",
    "pageflags",
    "pagetype",
    "migratetype",
    "zone_type",
    "fs_struct",
    "files_struct",
    "uts_namespace",
    "new_utsname",
    "pid",
    "thread_struct",
];

/// Members that a coloring asks for, roughly.
const MEMBERS: &[&str] = &[
    "page.flags",
    "page.mapping",
    "page.index",
    "page.__folio_index",
    "page.private",
    "page._refcount",
    "page._mapcount",
    "page.page_type",
    "page.compound_head",
    "page.compound_info",
    "page.lru",
    "page.slab_cache",
    "slab.slab_cache",
    "folio._folio_nr_pages",
    "zone.free_area",
    "zone.per_cpu_pageset",
    "zone.pageset",
    "zone.zone_start_pfn",
    "zone.spanned_pages",
    "free_area.free_list",
    "free_area.nr_free",
    "kmem_cache.name",
    "kmem_cache.list",
    "kmem_cache.size",
    "task_struct.tasks",
    "task_struct.mm",
    "task_struct.comm",
    "task_struct.pid",
    "task_struct.tgid",
    "task_struct.stack",
    "task_struct.signal",
    "task_struct.se.vruntime",
    "mm_struct.pgd",
    "mm_struct.mm_mt",
    "mm_struct.mmap",
    "mm_struct.start_brk",
    "mm_struct.exe_file",
    "vm_area_struct.vm_start",
    "vm_area_struct.vm_end",
    "vm_area_struct.vm_file",
    "address_space.host",
    "address_space.i_pages",
    "inode.i_ino",
    "inode.i_sb",
    "inode.i_mapping",
    "inode.i_dentry",
    "inode.i_nlink",
    "inode.i_mode",
    "super_block.s_type",
    "super_block.s_id",
    "super_block.s_list",
    "super_block.s_root",
    "super_block.s_dev",
    "dentry.d_name",
    "dentry.__d_name",
    "dentry.d_parent",
    "dentry.d_u",
    "dentry.d_inode",
    "qstr.name",
    "qstr.len",
    "file.f_inode",
    "file.f_path",
    "file_system_type.name",
    "xarray.xa_head",
    "xa_node.slots",
    "swap_info_struct.bdev",
    "hstate.order",
    "hstate.hugepage_freelists",
    "anon_vma.root",
    "module.list",
    "module.name",
    "vmap_area.va_start",
    "vm_struct.pages",
    "mem_section.section_mem_map",
    "per_cpu_pages.lists",
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
    if rest.iter().any(|argument| argument == "types") {
        return print_types(&Btf::find(image)?);
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

    let start =
        symbols.lookup(&["__start_BTF"]).into_iter().flatten().next().ok_or("no __start_BTF")?;
    let at = usize::try_from(start.0 - va.0)?;
    let bytes = image.get(at..).ok_or("BTF outside the image")?;
    let btf = Btf::parse(bytes)?;
    println!("{btf:?}");
    println!("BTF, searched       {:?}", best_of(|| Btf::find(image).is_ok()));
    println!("BTF, at its symbol  {:?}", best_of(|| Btf::parse(bytes).is_ok()));
    println!("index of {:3} structs {:?}", STRUCTS.len(), best_of(|| btf.index(STRUCTS)));
    let types = btf.index(STRUCTS);
    println!(
        "{:3} members          {:?}",
        MEMBERS.len(),
        best_of(|| MEMBERS.iter().filter_map(|path| types.member(path)).count())
    );
    for path in MEMBERS {
        print!(
            "{path} {} ",
            types.member(path).map_or("-".into(), |member| member.byte_offset.to_string())
        );
    }
    println!();
    Ok(())
}

/// Answers questions on standard input.
fn print_types(btf: &Btf<'_>) -> Result<(), Box<dyn Error>> {
    let questions = std::io::read_to_string(std::io::stdin())?;
    let name = |path: &str| {
        path.strip_prefix("enum ").unwrap_or(path).split('.').next().unwrap_or_default().to_owned()
    };
    let names: Vec<String> = questions.lines().map(name).collect();
    let types = btf.index(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for path in questions.lines() {
        if let Some((name, constant)) =
            path.strip_prefix("enum ").and_then(|path| path.split_once('.'))
        {
            println!("{path} {:?}", types.enum_value(name, constant));
        } else if let Some(member) = types.member(path) {
            let bits = member.byte_offset * 8 + u64::from(member.bit_offset);
            let (size, length) = (btf.type_size(member.type_id), btf.array_len(member.type_id));
            println!(
                "{path} {bits} {} size {size:?} length {length:?}",
                member.bit_size.unwrap_or(0)
            );
        } else {
            println!("{path} - size {:?}", types.size(path));
        }
    }
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
