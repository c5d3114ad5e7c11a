//! An opened kernel: location, symbols, types, frame table.

use super::btf::{Btf, MAGIC as BTF_MAGIC};
use super::common_symbols::{CommonSymbols, hints_of_pages};
use super::frames::table::{FrameTable, FrameTableError};
use super::image_bytes::{ImagePart, image_bytes};
use super::introspect::LinuxError;
use super::kallsyms::{Kallsyms, KallsymsError, KallsymsHints};
use super::locate::{
    Hints, IMAGE_BASE, ImageSpan, Located, RootHint, describes, locate, notes_in, read_note, reread,
};
use super::profile::Profile;
use super::running::choose;
use super::symbols::Symbols;
use super::view::{DirectMap, KernelView};
use super::vmcoreinfo::VmcoreInfo;
use crate::addr::{Gpa, Gva};
use crate::color::{KernelIdentity, Temperature};
use crate::guest_os::{Note, Phase};
use crate::memory::GuestMemory;
use crate::paging::{PagingSpec, TableBudget};
use std::borrow::Cow;
use std::collections::HashMap;

/// Everything needed to read the kernel's structures.
pub(super) struct Kernel<'m> {
    pub(super) view: KernelView<'m, dyn GuestMemory + 'm>,
    pub(super) spec: PagingSpec,
    /// The root table through which the kernel was found; not necessarily the kernel's own.
    pub(super) root: Gpa,
    pub(super) image: ImageSpan,
    pub(super) symbols: Symbols,
    /// The common-symbol hints of each page of the image; empty without symbols.
    pub(super) page_hints: Vec<Temperature>,
    pub(super) note: Option<VmcoreInfo>,
    pub(super) profile: Profile,
    pub(super) table: FrameTable,
    /// Names of the page flags, by bit number; empty without type information.
    pub(super) flag_names: Vec<(u32, String)>,
}

impl<'m> Kernel<'m> {
    /// Finds the kernel and reads its descriptions. Missing or damaged optional parts are reported
    /// in `notes`.
    pub(super) fn open(
        memory: &'m dyn GuestMemory,
        hints: Hints<'_>,
        budget: &mut TableBudget,
        common: &CommonSymbols,
        begin: &mut dyn FnMut(Phase),
        notes: &mut Vec<Note>,
    ) -> Result<Self, LinuxError> {
        begin(Phase::Locate);
        let mut located = locate(memory, hints, budget)?;
        match (located.pop(), located.is_empty()) {
            (Some(only), true) => Self::open_one(memory, only, common, budget, begin, notes),
            (last, _) => {
                located.extend(last);
                choose(memory, located, common, budget, begin, notes)
            }
        }
    }

    /// Reads the descriptions of a kernel at a known location.
    pub(super) fn open_one(
        memory: &'m dyn GuestMemory,
        located: Located,
        common: &CommonSymbols,
        budget: &mut TableBudget,
        begin: &mut dyn FnMut(Phase),
        notes: &mut Vec<Note>,
    ) -> Result<Self, LinuxError> {
        let Located { spec, root, space, image, note, root_hint } = located;
        let mut view = KernelView::new(memory, space);
        if let Some(direct_map) = find_direct_map(&view) {
            view.set_direct_map(direct_map);
        }

        begin(Phase::Symbols);
        let read = |wanted| image_bytes(memory, &image, view.space(), wanted);
        let (bytes, missing) = match read(ImagePart::ReadOnly) {
            (Cow::Owned(part), _) if !has_tables(&view, &image, &part, note.as_ref()) => {
                read(ImagePart::All)
            }
            found => found,
        };
        notes.extend(missing);
        let kallsyms = find_symbols(&view, &image, &bytes, note.as_ref())
            .map_err(|e| notes.push(Note::incomplete("symbols", e.to_string())))
            .ok();
        let from_table = Symbols::from_kallsyms(kallsyms.as_ref());
        if root_hint == RootHint::RootTable {
            // A root found by a scan may belong to a process that has exited, and lack what the
            // kernel mapped afterwards.
            let own = from_table.root().and_then(|r| view.translate(r)).map(|(gpa, _)| gpa);
            let own = own.filter(|own| *own != root);
            if let Some(space) = own.and_then(|own| reread(memory, &spec, own, &image, budget)) {
                view = KernelView::new(memory, space);
                if let Some(direct_map) = find_direct_map(&view) {
                    view.set_direct_map(direct_map);
                }
            }
        }
        let note = note.or_else(|| find_note(&view, &image, &from_table));
        let symbols = from_table.or(Symbols::from_note(note.as_ref()));

        begin(Phase::CommonSymbols);
        let of_table = |table| hints_of_pages(table, &image, common);
        let page_hints = kallsyms.as_ref().map(of_table).unwrap_or_default();

        begin(Phase::Types);
        let btf = find_types(&image, &bytes, &symbols, notes);
        let types = btf.as_ref().map(|btf| btf.index(Profile::type_names()));
        let profile = Profile::collect(types.as_ref(), note.as_ref());
        let flags = types.as_ref().and_then(|t| t.enum_named("pageflags"));
        let names = flags.iter().flat_map(|f| f.constants());
        let named = |(name, bit): (&str, i64)| {
            let bit = u32::try_from(bit).ok().filter(|&b| b < 64)?;
            Some((bit, name.strip_prefix("PG_")?.to_owned()))
        };
        let flag_names = names.filter_map(named).collect();

        let base = find_frame_table(&view, &symbols, note.as_ref());
        let table = FrameTable::new(base.ok_or(FrameTableError::NoAddress)?, &profile)?;
        Ok(Self { view, spec, root, image, symbols, page_hints, note, profile, table, flag_names })
    }

    /// Root of the kernel's own page tables.
    pub(super) fn own_root(&self) -> Gpa {
        let by_symbol = self.symbols.root().and_then(|r| self.view.translate(r));
        by_symbol.map_or(self.root, |(gpa, _)| gpa)
    }

    /// Identity of this kernel.
    pub(super) fn identity(&self) -> KernelIdentity {
        let note = self.note.as_ref();
        let banner =
            self.symbols.linux_banner.and_then(|b| self.view.read_string(b)).unwrap_or_default();
        let from_banner = || banner.strip_prefix("Linux version ")?.split(' ').next();
        let release = note.map(VmcoreInfo::os_release).or_else(from_banner).unwrap_or_default();
        KernelIdentity {
            os: "linux".to_owned(),
            release: release.to_owned(),
            banner: banner.trim_end().to_owned(),
            build_id: note.and_then(VmcoreInfo::build_id).unwrap_or_default().to_owned(),
            paging: self.spec.name.to_owned(),
        }
    }
}

pub(super) fn find_symbols<'b, M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    image: &ImageSpan,
    bytes: &'b [u8],
    note: Option<&VmcoreInfo>,
) -> Result<Kallsyms<'b>, KallsymsError> {
    let last = Gva(image.gva.0.saturating_add(image.bytes));
    let mut runs = view.space().runs_in(image.gva, last).iter();
    let read_only = runs.find(|r| !r.rights.execute && !r.rights.write).map(|r| r.gva);
    let token_table = note.and_then(|n| n.symbol("kallsyms_token_table"));
    let hints = KallsymsHints { token_table, read_only_data: read_only };
    Kallsyms::find(bytes, image.gva, &hints)
}

/// Whether this part of the image contains the symbol table, and the types at the address that the
/// symbols report.
fn has_tables<M>(
    view: &KernelView<'_, M>,
    image: &ImageSpan,
    part: &[u8],
    note: Option<&VmcoreInfo>,
) -> bool
where
    M: GuestMemory + ?Sized,
{
    let Ok(kallsyms) = find_symbols(view, image, part, note) else { return false };
    let symbols = Symbols::from_kallsyms(Some(&kallsyms));
    let types = symbols.__start_BTF.and_then(|start| start.0.checked_sub(image.gva.0));
    let at = types.and_then(|offset| part.get(usize::try_from(offset).ok()?..));
    types.is_none() || at.is_some_and(|bytes| bytes.starts_with(&BTF_MAGIC))
}

fn find_types<'b>(
    image: &ImageSpan,
    bytes: &'b [u8],
    symbols: &Symbols,
    notes: &mut Vec<Note>,
) -> Option<Btf<'b>> {
    let offset = |gva: Gva| usize::try_from(gva.0.checked_sub(image.gva.0)?).ok();
    let known = symbols.__start_BTF.and_then(offset).zip(symbols.__stop_BTF.and_then(offset));
    let section = known.and_then(|(start, stop)| bytes.get(start..stop));
    let by_symbol = section.and_then(|s| Btf::parse(s).ok());
    let found = by_symbol.map_or_else(|| Btf::find(bytes), Ok);
    found.map_err(|e| notes.push(Note::incomplete("types", e.to_string()))).ok()
}

/// Finds VMCOREINFO through the kernel's pointer, or else by checking the start of every page.
fn find_note<M>(
    view: &KernelView<'_, M>,
    image: &ImageSpan,
    symbols: &Symbols,
) -> Option<VmcoreInfo>
where
    M: GuestMemory + ?Sized,
{
    let by_symbol = || {
        let (gpa, _) = view.translate(view.read_pointer(symbols.vmcoreinfo_data?)?)?;
        read_note(view.memory(), gpa)
    };
    let of_image = |note: &VmcoreInfo| describes(note, image);
    by_symbol().or_else(|| notes_in(view.memory()).into_iter().find(of_image))
}

/// The direct map: the offset between virtual and physical addresses at which most memory is
/// mapped.
fn find_direct_map<M: GuestMemory + ?Sized>(view: &KernelView<'_, M>) -> Option<DirectMap> {
    let mut bytes_at = HashMap::<u64, u64>::new();
    for run in view.space().runs().iter().filter(|r| r.gva < IMAGE_BASE) {
        if let Some(base) = run.gva.0.checked_sub(run.gpa.0) {
            let bytes = bytes_at.entry(base).or_default();
            *bytes = bytes.saturating_add(run.bytes);
        }
    }
    // Among equals, take the lowest base, so that the result does not depend on hash table order.
    let (base, _) = bytes_at.into_iter().max_by_key(|&(base, bytes)| (bytes, !base))?;
    Some(DirectMap { base: Gva(base), end: view.memory().layout().end_gfn().gpa() })
}

/// Address of the frame table, from the kernel's variable, VMCOREINFO, or the memory sections.
fn find_frame_table<M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    symbols: &Symbols,
    note: Option<&VmcoreInfo>,
) -> Option<Gva> {
    let is_mapped = |gva: &Gva| view.space().translate(*gva).is_some();
    let by_variable = symbols.vmemmap_base.and_then(|v| view.read_pointer(v)).filter(is_mapped);
    let by_note = || note?.symbol("vmemmap").filter(is_mapped);
    // A section's word is the address of the frame table's element for frame 0, with flags in the
    // low bits.
    let by_section = || {
        let roots = note?.symbol("mem_section")?;
        let section = view.read_pointer(roots)?;
        let offset = note?.offset("mem_section.section_mem_map").unwrap_or(0);
        let word = view.read_field(section, offset)?;
        Some(Gva(word & !0x3f)).filter(is_mapped)
    };
    by_variable.or_else(by_note).or_else(by_section)
}
