//! The names of the symbols in each page of a kernel image, for learning common symbols.

use super::CommonSymbols;
use super::score::{over_pages, part_name};
use crate::guest_os::IntrospectError;
use crate::linux::bytes::index;
use crate::linux::image_bytes::{ImagePart, image_bytes};
use crate::linux::introspect::{self, Linux, LinuxError};
use crate::linux::kallsyms::{Kallsyms, PADDING};
use crate::linux::kernel::{Kernel, find_symbols};
use crate::linux::locate::{Hints, ImageSpan};
use crate::memory::GuestMemory;
use crate::registers::VcpuRegisters;

/// Maximum number of bytes of names; kernels have 3 to 10 MB.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// Symbols of a kernel by the pages of its image.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SymbolsByPage {
    /// All names, concatenated.
    names: String,
    /// For each symbol and each of its pages: the page number in the image, the page number in the
    /// symbol, the range of the name in `names`.
    entries: Vec<(u32, u32, std::ops::Range<u32>)>,
}

impl SymbolsByPage {
    fn read(kallsyms: &Kallsyms<'_>, image: &ImageSpan) -> Self {
        let mut out = Self::default();
        let symbols = kallsyms.iter().filter(|s| !s.name.as_bytes().starts_with(PADDING));
        over_pages(symbols.map(|s| (s.address, s.name)), image, |name, page, part| {
            out.push(name, page, part);
        });
        out
    }

    /// Adds one page of a symbol, unless the names exceed their limit. The pages of a symbol must
    /// be added consecutively.
    pub(super) fn push(&mut self, name: &str, page: u32, part: u32) {
        let last = self.entries.last().filter(|_| part > 0).map(|(_, _, name)| name.clone());
        let name = last.or_else(|| {
            let start = u32::try_from(self.names.len()).ok()?;
            let end = self.names.len().checked_add(name.len()).filter(|&e| e <= MAX_TEXT_BYTES)?;
            self.names.push_str(name);
            Some(start..u32::try_from(end).ok()?)
        });
        self.entries.extend(name.map(|name| (page, part, name)));
    }

    /// All keys: the page number in the image, and the symbol's name there (`NAME` for its first
    /// page, `NAME+1` for its second).
    pub fn iter(&self) -> impl Iterator<Item = (u32, String)> + '_ {
        self.entries.iter().map(|(page, part, name)| {
            let name = self.names.get(index(name.start)..index(name.end)).unwrap_or_default();
            (*page, part_name(name, *part))
        })
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Linux {
    /// The symbols of a guest's kernel by the pages of its image. Takes at most 64 MiB for names
    /// and 20 bytes per symbol and page of the image; symbols beyond the limit are left out.
    ///
    /// # Errors
    /// If no kernel or no symbol table is found.
    pub fn symbols_by_page(
        &self,
        memory: &dyn GuestMemory,
        registers: &[VcpuRegisters],
    ) -> Result<SymbolsByPage, IntrospectError> {
        let mut budget = introspect::table_budget(memory);
        let hints = Hints { registers, notes: &self.vmcoreinfo };
        let (mut begin, mut notes, none) = (|_| {}, Vec::new(), CommonSymbols::none());
        let kernel = Kernel::open(memory, hints, &mut budget, &none, &mut begin, &mut notes)?;
        let Kernel { view, image, note, .. } = &kernel;
        let (bytes, _) = image_bytes(memory, image, view.space(), ImagePart::All);
        let kallsyms =
            find_symbols(view, image, &bytes, note.as_ref()).map_err(LinuxError::from)?;
        Ok(SymbolsByPage::read(&kallsyms, image))
    }
}
