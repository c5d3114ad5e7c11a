//! The raw words behind one frame's facts, for explaining a color.

use super::common_symbols::CommonSymbols;
use super::introspect::{Linux, table_budget};
use super::kernel::Kernel;
use super::locate::Hints;
use crate::addr::Gfn;
use crate::guest_os::IntrospectError;
use crate::memory::GuestMemory;
use crate::registers::VcpuRegisters;
use std::fmt::Write as _;

/// Maximum number of kernel addresses to list for one frame.
const MAX_ADDRESSES: usize = 8;

impl Linux {
    /// The words of a frame's record in the frame table, with flags decoded, and the kernel
    /// addresses that map the frame (at most 8), for display: the name of each, such as
    /// `struct page flags`, and its value, formatted.
    ///
    /// # Errors
    /// Like introspection: if no kernel or no frame table is found.
    pub fn inspect(
        &self,
        memory: &dyn GuestMemory,
        registers: &[VcpuRegisters],
        gfn: Gfn,
    ) -> Result<Vec<(String, String)>, IntrospectError> {
        let mut budget = table_budget(memory);
        let none = CommonSymbols::none();
        let (mut begin, mut notes) = (|_| {}, Vec::new());
        let hints = Hints { registers, notes: &self.vmcoreinfo };
        let kernel = Kernel::open(memory, hints, &mut budget, &none, &mut begin, &mut notes)?;
        let mut facts = Vec::new();
        let mut fact = |name: String, value: String| facts.push((name, value));
        match kernel.table.describe(&kernel.view, gfn) {
            Some(words) => {
                for (name, word) in words {
                    let mut value = format!("{word:#x}");
                    if name == "flags" {
                        value += &flag_names(&kernel.flag_names, word);
                    }
                    fact(format!("struct page {name}"), value);
                }
            }
            None => fact("struct page".to_owned(), "not in memory".to_owned()),
        }
        let gpa = gfn.gpa();
        let runs = kernel.view.space().runs().iter();
        let maps = runs.filter_map(|run| {
            let offset = gpa.0.checked_sub(run.gpa.0).filter(|&offset| offset < run.bytes)?;
            Some((run, run.gva.0.wrapping_add(offset)))
        });
        for (run, gva) in maps.take(MAX_ADDRESSES) {
            let rights = [(run.rights.write, 'w'), (run.rights.execute, 'x')];
            let rights: String = rights.iter().map(|&(has, c)| if has { c } else { '-' }).collect();
            fact("kernel mapping".to_owned(), format!("{gva:#x} r{rights}"));
        }
        Ok(facts)
    }
}

fn flag_names(names: &[(u32, String)], word: u64) -> String {
    let mut text = String::new();
    let mut seen = 0u64;
    for (bit, name) in names {
        let mask = 1u64 << bit;
        // Several names may share one bit; the first is the common one.
        if word & mask != 0 && seen & mask == 0 {
            seen |= mask;
            // Writing to a string cannot fail.
            let _ = write!(text, " {name}");
        }
    }
    text
}
