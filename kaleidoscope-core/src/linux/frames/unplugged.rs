//! Memory that a virtio-mem device has not plugged into the guest.
//!
//! The driver reserves the device's whole region in the kernel's resource tree, as system RAM under
//! the device's name (`virtio0`). Below this resource, there is one resource for each run of memory
//! blocks that was added. Parts of the region that no such resource covers were never plugged, or
//! were unplugged: they have no frame table, and the guest stores nothing there.
//!
//! A missing frame table alone is not sufficient evidence: firmware, video memory and NVDIMMs have
//! none either, and their contents matter.
//!
//! Source: Linux, `drivers/virtio/virtio_mem.c`, `kernel/resource.c` and `include/linux/ioport.h`.

use crate::addr::{FRAME_SIZE, Gfn, Gva};
use crate::guest_os::FrameUse;
use crate::linux::frames::reader::{DamageCount, FrameRecords};
use crate::linux::frames::table::FrameTable;
use crate::linux::profile::Fields;
use crate::linux::symbols::Symbols;
use crate::linux::view::KernelView;
use crate::memory::GuestMemory;

/// `IORESOURCE_SYSRAM`: the region is, or may become, system RAM.
const SYSTEM_RAM: u64 = 0x0100_0000;

/// Maximum number of resources to read; a machine with many devices has a few thousand.
const MAX_RESOURCES: usize = 1 << 16;

/// A node of the resource tree.
struct Resource {
    start: u64,
    /// Last address, inclusive.
    last: u64,
    sibling: Option<Gva>,
    child: Option<Gva>,
    is_device: bool,
}

/// Unplugged frames of virtio-mem devices, as runs `first..end` in ascending order. Empty if the
/// resource tree, its symbol or its types are missing, or if the tree is inconsistent.
pub(in crate::linux) fn unplugged<M>(
    view: &KernelView<'_, M>,
    symbols: &Symbols,
    fields: &Fields,
) -> Vec<(Gfn, Gfn)>
where
    M: GuestMemory + ?Sized,
{
    let mut tree = Tree { view, fields, left: MAX_RESOURCES };
    symbols.iomem_resource.and_then(|root| tree.unplugged(root)).unwrap_or_default()
}

struct Tree<'v, 'm, M: ?Sized> {
    view: &'v KernelView<'m, M>,
    fields: &'v Fields,
    left: usize,
}

impl<M: GuestMemory + ?Sized> Tree<'_, '_, M> {
    fn unplugged(&mut self, root: Gva) -> Option<Vec<(Gfn, Gfn)>> {
        let mut kept = Vec::new();
        // Nodes whose siblings and children have not been read yet.
        let mut open: Vec<Gva> = self.read(root)?.child.into_iter().collect();
        while let Some(at) = open.pop() {
            let node = self.read(at)?;
            open.extend(node.sibling);
            if node.is_device {
                self.kept_by(&node, &mut kept)?;
            } else {
                open.extend(node.child);
            }
        }
        kept.sort_unstable();
        Some(kept)
    }

    /// Adds the parts of a device's region that none of its children covers.
    fn kept_by(&mut self, device: &Resource, kept: &mut Vec<(Gfn, Gfn)>) -> Option<()> {
        let mut at = device.start;
        let mut next = device.child;
        // Children are sorted by address.
        while let Some(child) = next {
            let block = self.read(child)?;
            if block.start < at || block.last > device.last {
                return None;
            }
            kept.extend(whole_frames(at, block.start));
            at = block.last.checked_add(1)?;
            next = block.sibling;
        }
        kept.extend(whole_frames(at, device.last.checked_add(1)?));
        Some(())
    }

    /// Reads a node; `None` if it cannot be read, is inconsistent, or the limit is reached.
    fn read(&mut self, node: Gva) -> Option<Resource> {
        self.left = self.left.checked_sub(1)?;
        let (view, fields) = (self.view, self.fields);
        let field = |offset: Option<u64>| view.read_field(node, offset?);
        let pointer = |offset| Some(Some(Gva(field(offset)?)).filter(|p| p.0 != 0));
        let (start, last) = (field(fields.resource_start)?, field(fields.resource_end)?);
        let flags = field(fields.resource_flags)?;
        let name = pointer(fields.resource_name)?.and_then(|name| view.read_string(name));
        let number = name.as_deref().and_then(|name| name.strip_prefix("virtio"));
        let is_virtio =
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        (start <= last).then_some(Resource {
            start,
            last,
            sibling: pointer(fields.resource_sibling)?,
            child: pointer(fields.resource_child)?,
            is_device: flags & SYSTEM_RAM != 0 && is_virtio,
        })
    }
}

/// The whole frames in `start..end`; `None` if there are none.
fn whole_frames(start: u64, end: u64) -> Option<(Gfn, Gfn)> {
    let (first, end) = (start.div_ceil(FRAME_SIZE), end / FRAME_SIZE);
    (first < end).then_some((Gfn(first), Gfn(end)))
}

impl FrameRecords {
    /// Marks frames of `kept` without a mapped frame table record as offline. A mapped record takes
    /// precedence over the resources. Does nothing if the kernel's page tables were not read in
    /// full, since then missing records prove nothing.
    pub(in crate::linux) fn set_unplugged<M>(
        &mut self,
        view: &KernelView<'_, M>,
        table: &FrameTable,
        kept: &[(Gfn, Gfn)],
    ) where
        M: GuestMemory + ?Sized,
    {
        let report = view.space().report();
        if kept.is_empty() || report.cut || report.unreadable > 0 {
            return;
        }
        let mut unreadable = DamageCount::default();
        let mut marked = 0_u64;
        for ((_, gfn), record) in view.memory().layout().iter().zip(&mut self.records) {
            if record.usage != FrameUse::Unknown {
                continue;
            }
            let described = table.record_address(gfn).and_then(|at| view.translate(at)).is_some();
            let run = kept.partition_point(|&(first, _)| first <= gfn).checked_sub(1);
            let is_kept = run.and_then(|at| kept.get(at)).is_some_and(|&(_, end)| gfn < end);
            if is_kept && !described {
                record.usage = FrameUse::Offline;
                marked = marked.saturating_add(1);
            } else if !described {
                unreadable.add(gfn);
            }
        }
        // Of the frames counted as unreadable, only those without a mapped record were marked; the
        // others remain.
        let count = self.damage.unreadable.count.saturating_sub(marked);
        if marked > 0 {
            let first = unreadable.first.or(self.damage.unreadable.first).filter(|_| count > 0);
            self.damage.unreadable = DamageCount { count, first };
        }
    }
}
