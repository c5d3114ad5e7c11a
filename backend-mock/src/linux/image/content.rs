//! Contents of the image: functions, banner, type information, symbol table, and decoys of these.

use super::{btf, kallsyms};
use crate::MockError;
use crate::linux::image::Section;
use crate::linux::image::vmcoreinfo::TableLocation;
use crate::linux::kernel::Kernel;
use kaleidoscope_core::addr::Gva;

impl Kernel {
    pub(in crate::linux) fn name_sections(&mut self) {
        let at = |s| self.image.addresses(s);
        let [text, rodata, data, init, bss] = [
            at(Section::Text),
            at(Section::Rodata),
            at(Section::Data),
            at(Section::Init),
            at(Section::Bss),
        ];
        for (name, kind, address) in [
            ("_text", 'T', text.start),
            ("_stext", 'T', text.start),
            ("_etext", 'T', text.end),
            ("__start_rodata", 'R', rodata.start),
            ("__end_rodata", 'R', rodata.end),
            ("_sdata", 'D', data.start),
            ("_edata", 'D', data.end),
            ("__init_begin", 'D', init.start),
            ("__init_end", 'R', init.end),
            ("__bss_start", 'B', bss.start),
            ("__bss_stop", 'B', bss.end),
            ("_end", 'B', bss.end),
        ] {
            self.image.name(name, kind, address.0);
        }
    }

    /// Fills the text with functions of distinct bytes; returns their names.
    pub(in crate::linux) fn write_text(&mut self) -> Result<Vec<String>, MockError> {
        let subsystems = [
            "vfs",
            "tcp",
            "ext4",
            "sched",
            "mm",
            "blk",
            "x86",
            "kvm",
            "net",
            "irq",
            "rcu",
            "drm_atomic_helper",
        ];
        let verbs = [
            "alloc",
            "free",
            "lookup",
            "release",
            "init",
            "read_iter",
            "update",
            "queue",
            "get",
            "put",
            "commit",
        ];
        let nouns = [
            "page",
            "inode",
            "task",
            "skb",
            "bio",
            "entry",
            "range",
            "work",
            "state",
            "dentry_unlocked",
            "node",
        ];
        let bytes = self.image.room(Section::Text);
        let mut functions = Vec::new();
        for (i, subsystem) in subsystems.iter().enumerate() {
            for (j, verb) in verbs.iter().enumerate() {
                for (k, noun) in nouns.iter().enumerate() {
                    // Some names end in a suffix that compilers append.
                    let suffix = if (i + j + k) % 17 == 0 { ".constprop.0" } else { "" };
                    functions.push(format!("{subsystem}_{verb}_{noun}{suffix}"));
                }
            }
        }
        let share = bytes / (functions.len() as u64 + 1) / 16 * 16;
        for name in &functions {
            let gva = self.image.place(Section::Text, name, share, 16)?;
            let code = self.rng.next_u64().to_le_bytes();
            self.store_bytes(gva.0, &[0xf3, 0x0f, 0x1e, 0xfa])?;
            self.store_bytes(gva.0 + 4, &code)?;
        }
        Ok(functions)
    }

    /// Bytes that look like the start of a symbol table or of type information; real kernels
    /// contain such bytes, too.
    pub(in crate::linux) fn write_decoys(&mut self) -> Result<(), MockError> {
        // A table of wide characters, including digits.
        let wide: Vec<u8> = (0u16..256).flat_map(u16::to_le_bytes).collect();
        let gva = self.image.place(Section::Rodata, "t2_nls_table", wide.len() as u64, 32)?;
        self.store_bytes(gva.0, &wide)?;
        let fake = [
            0x9f, 0xeb, 1, 0, 0x58, 0x4a, 0x2b, 0xff, 0x37, 0x61, 2, 0, 0x93, 0xeb, 1, 0, 0x9c,
            0x4a, 0x2b, 0xff,
        ];
        let gva = self.image.place(Section::Rodata, "aes_sbox_decoy", fake.len() as u64, 4)?;
        self.store_bytes(gva.0, &fake)
    }

    pub(in crate::linux) fn write_btf(
        &mut self,
        functions: &[String],
    ) -> Result<(Gva, u64), MockError> {
        let bytes = btf::encode(&self.types, self.style, functions);
        let size = bytes.len() as u64;
        let gva = self.image.place(Section::Rodata, "__start_BTF", size, 4)?;
        self.image.name("__stop_BTF", 'R', gva.0 + size);
        self.store_bytes(gva.0, &bytes)?;
        Ok((gva, size))
    }

    /// Writes the symbol table at the end of the read-only data.
    pub(in crate::linux) fn write_kallsyms(&mut self) -> Result<(TableLocation, u64), MockError> {
        self.image.symbols.sort();
        let at = self.image.place(Section::Rodata, "", 0, 8)?.0;
        let (bytes, parts) =
            kallsyms::encode(&self.image.symbols, self.style.kallsyms(), at, self.image.gva.0);
        let size = bytes.len() as u64;
        self.image.place(Section::Rodata, "", size, 8)?;
        self.store_bytes(at, &bytes)?;
        Ok((TableLocation { at, parts }, size))
    }
}
