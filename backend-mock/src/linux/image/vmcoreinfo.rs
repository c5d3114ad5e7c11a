//! The page that describes the kernel to crash-dump tools (`VMCOREINFO`).

use crate::MockError;
use crate::linux::KernelStyle;
use crate::linux::boot::section_roots;
use crate::linux::builder::Knobs;
use crate::linux::encryption::Encryption;
use crate::linux::image::kallsyms::Parts;
use crate::linux::image::{IMAGE_START, Section};
use crate::linux::kernel::{Kernel, PageRecord};
use crate::linux::memory::buddy::MAX_NODES;
use crate::linux::schema::BUDDY_ORDERS;
use crate::linux::style::PageType;
use crate::linux::truth::Role;
use kaleidoscope_core::addr::{FRAME_BYTES, Gpa};

/// Location of the symbol table, as the note states it.
#[derive(Clone, Copy, Debug)]
pub(in crate::linux) struct TableLocation {
    /// Address of the symbol table.
    pub(in crate::linux) at: u64,
    pub(in crate::linux) parts: Parts,
}

impl Kernel {
    /// Writes the page; returns its physical address.
    pub(in crate::linux) fn vmcoreinfo(
        &mut self,
        knobs: &Knobs,
        kallsyms: TableLocation,
    ) -> Result<Gpa, MockError> {
        let text = self.vmcoreinfo_text(knobs, kallsyms)?;
        if text.len() > FRAME_BYTES {
            return Err(MockError::TooLarge { what: "VMCOREINFO", bytes: FRAME_BYTES as u64 });
        }
        let gfn = self.frames.take(0, |_| Role::KernelAlloc)?;
        self.write_page(gfn, &PageRecord { refcount: 1, ..PageRecord::default() })?;
        self.memory.write(gfn.gpa(), text.as_bytes())?;
        let address = self.direct(gfn.gpa());
        self.store(self.image.symbol("vmcoreinfo_data")?.0, address)?;
        Ok(gfn.gpa())
    }

    fn vmcoreinfo_text(
        &mut self,
        knobs: &Knobs,
        kallsyms: TableLocation,
    ) -> Result<String, MockError> {
        let mut out = format!("OSRELEASE={}\n", self.style.release());
        let build: Vec<String> = (0..20).map(|_| format!("{:02x}", self.rng.below(256))).collect();
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        if self.style >= KernelStyle::V6_1 {
            line(format!("BUILD-ID={}", build.concat()));
        }
        line("PAGESIZE=4096".to_owned());
        let symbol = |name: &str, kernel: &str| {
            Ok::<_, MockError>(format!("SYMBOL({name})={:x}", self.image.symbol(kernel)?.0))
        };
        line(symbol("swapper_pg_dir", "init_top_pgt")?);
        line(symbol("_stext", "_stext")?);
        if self.style >= KernelStyle::V6_12 {
            line(format!("NUMBER(VMALLOC_START)=0x{:x}", self.bases.vmalloc));
            line(format!("SYMBOL(vmemmap)={:x}", self.bases.vmemmap));
        }
        line(format!("SYMBOL(mem_section)={:x}", self.load(self.image.symbol("mem_section")?.0)?));
        line(format!("LENGTH(mem_section)={}", section_roots(knobs)));
        line(format!("SIZE(mem_section)={}", self.types.size_of("mem_section")?));
        line(format!(
            "OFFSET(mem_section.section_mem_map)={}",
            self.types.offset("mem_section", "section_mem_map")?
        ));
        line("NUMBER(SECTION_SIZE_BITS)=27".to_owned());
        line(format!("NUMBER(MAX_PHYSMEM_BITS)={}", if knobs.five_level { 52 } else { 46 }));
        for name in ["page", "pglist_data", "zone", "free_area", "list_head"] {
            line(format!("SIZE({name})={}", self.types.size_of(name)?));
        }
        let old = ["compound_dtor", "compound_order"];
        let page = ["flags", "_refcount", "mapping", "lru", "_mapcount", "private"];
        let head = if self.style == KernelStyle::V7_2 { "compound_info" } else { "compound_head" };
        let old = old.iter().filter(|_| self.style <= KernelStyle::V6_1);
        for name in page.iter().chain(old).chain(&[head]) {
            line(format!("OFFSET(page.{name})={}", self.types.offset("page", name)?));
        }
        for (ty, name) in [
            ("pglist_data", "node_zones"),
            ("pglist_data", "nr_zones"),
            ("pglist_data", "node_start_pfn"),
            ("pglist_data", "node_spanned_pages"),
            ("pglist_data", "node_id"),
            ("zone", "free_area"),
            ("zone", "vm_stat"),
            ("zone", "spanned_pages"),
            ("free_area", "free_list"),
            ("list_head", "next"),
            ("list_head", "prev"),
        ] {
            line(format!("OFFSET({ty}.{name})={}", self.types.offset(ty, name)?));
        }
        line(format!("LENGTH(zone.free_area)={BUDDY_ORDERS}"));
        line(format!("LENGTH(free_area.free_list)={}", self.style.migrate_types()));
        line("NUMBER(NR_FREE_PAGES)=0".to_owned());
        let flags =
            ["PG_lru", "PG_private", "PG_swapcache", "PG_swapbacked", "PG_slab", "PG_hwpoison"];
        for flag in flags.iter().filter(|f| self.style.flag(f) != 0) {
            line(format!("NUMBER({flag})={}", self.style.flag(flag).trailing_zeros()));
        }
        line(format!("NUMBER(PG_head_mask)={}", self.style.flag("PG_head")));
        for (name, kind) in [
            ("PAGE_BUDDY_MAPCOUNT_VALUE", PageType::Buddy),
            ("PAGE_OFFLINE_MAPCOUNT_VALUE", PageType::Offline),
            ("PAGE_SLAB_MAPCOUNT_VALUE", PageType::Slab),
            ("PAGE_HUGETLB_MAPCOUNT_VALUE", PageType::Hugetlb),
        ] {
            if let Some(word) = self.style.page_type_word(kind) {
                line(format!("NUMBER({name})={}", word.cast_signed()));
            }
        }
        if self.style <= KernelStyle::V6_1 {
            line("NUMBER(HUGETLB_PAGE_DTOR)=2".to_owned());
        }
        if self.style >= KernelStyle::V6_1 {
            let TableLocation { at, parts } = kallsyms;
            for (name, distance) in [
                ("names", Some(parts.names)),
                ("num_syms", Some(parts.num_syms)),
                ("token_table", Some(parts.token_table)),
                ("token_index", Some(parts.token_index)),
                ("offsets", Some(parts.offsets)),
                ("relative_base", parts.relative_base),
            ] {
                if let Some(distance) = distance {
                    line(format!("SYMBOL(kallsyms_{name})={:x}", at + distance));
                }
            }
        }
        line(format!("NUMBER(phys_base)={}", self.phys_base().cast_signed()));
        line(symbol("init_top_pgt", "init_top_pgt")?);
        line(format!("NUMBER(pgtable_l5_enabled)={}", u8::from(knobs.five_level)));
        if knobs.numa {
            line(symbol("node_data", "node_data")?);
            line(format!("LENGTH(node_data)={MAX_NODES}"));
        } else {
            line(symbol("contig_page_data", "contig_page_data")?);
        }
        line(format!("KERNELOFFSET={:x}", self.image.gva.0 - IMAGE_START));
        line("NUMBER(KERNEL_IMAGE_SIZE)=1073741824".to_owned());
        let sme_mask = knobs.encryption.map_or(0, Encryption::sme_mask);
        line(format!("NUMBER(sme_mask)={sme_mask}"));
        Ok(out)
    }

    /// Reserves the variables that point to the page.
    pub(in crate::linux) fn vmcoreinfo_variables(&mut self) -> Result<(), MockError> {
        for name in ["vmcoreinfo_data", "vmcoreinfo_size", "vmcoreinfo_note"] {
            self.image.place(Section::Bss, name, 8, 8)?;
        }
        Ok(())
    }
}
