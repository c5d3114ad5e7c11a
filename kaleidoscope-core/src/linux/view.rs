//! Reading kernel-virtual memory.

use crate::addr::{FRAME_BYTES, Gpa, Gva};
use crate::guest_os::name::escape;
use crate::memory::GuestMemory;
use crate::paging::KernelSpace;

/// Maximum length of a kernel string, in bytes: file names have at most 255.
const MAX_STRING: usize = 255;

/// A guest's kernel memory by virtual address. Every read is checked; an unreadable address yields
/// `None`.
#[derive(Debug)]
pub(crate) struct KernelView<'m, M: ?Sized> {
    memory: &'m M,
    space: KernelSpace,
    direct_map: Option<DirectMap>,
}

/// The kernel's linear mapping of all RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DirectMap {
    /// Virtual address of physical address 0.
    pub(crate) base: Gva,
    /// Highest mapped physical address, exclusive.
    pub(crate) end: Gpa,
}

impl DirectMap {
    /// The physical address of `gva`, if it lies in the direct map.
    pub(crate) fn translate(&self, gva: Gva) -> Option<Gpa> {
        gva.0.checked_sub(self.base.0).filter(|&o| o < self.end.0).map(Gpa)
    }
}

impl<'m, M: GuestMemory + ?Sized> KernelView<'m, M> {
    pub(crate) fn new(memory: &'m M, space: KernelSpace) -> Self {
        Self { memory, space, direct_map: None }
    }

    /// Enables translation of direct-map addresses by arithmetic.
    pub(crate) fn set_direct_map(&mut self, direct_map: DirectMap) {
        self.direct_map = Some(direct_map);
    }

    pub(crate) fn direct_map(&self) -> Option<DirectMap> {
        self.direct_map
    }

    pub(crate) fn memory(&self) -> &'m M {
        self.memory
    }

    pub(crate) fn space(&self) -> &KernelSpace {
        &self.space
    }

    /// The physical address of `gva`, and for how many bytes from there the mapping stays
    /// contiguous.
    pub(crate) fn translate(&self, gva: Gva) -> Option<(Gpa, u64)> {
        if let Some(map) = &self.direct_map
            && let Some(gpa) = map.translate(gva)
            && let Some((_, left)) = self.memory.layout().span_at(gpa)
        {
            return Some((gpa, left));
        }
        self.space.translate(gva)
    }

    /// Number of consecutive unmapped bytes from `gva` up; `None` if `gva` is mapped.
    pub(crate) fn unmapped(&self, gva: Gva) -> Option<u64> {
        if self.translate(gva).is_some() {
            return None;
        }
        // The direct map, which is translated by arithmetic, may begin before the next walked run.
        let direct = self.direct_map.map(|map| map.base).filter(|base| *base > gva);
        let walked = self.space.next_after(gva);
        let next = walked.into_iter().chain(direct).min();
        let end = next.unwrap_or(Gva(u64::MAX));
        // Direct-map addresses outside RAM are rare and need no precise answer.
        let in_direct = self.direct_map.is_some_and(|map| map.translate(gva).is_some());
        end.0.checked_sub(gva.0).filter(|_| !in_direct)
    }

    /// The bytes from `gva` up, if they are physically contiguous and the memory can be borrowed.
    pub(crate) fn slice(&self, gva: Gva, len: usize) -> Option<&'m [u8]> {
        let (gpa, left) = self.translate(gva)?;
        if u64::try_from(len).ok()? > left {
            return None;
        }
        self.memory.slice(gpa, len)
    }

    /// Fills `buf` from `gva` on.
    pub(crate) fn read(&self, gva: Gva, buf: &mut [u8]) -> Option<()> {
        let mut gva = gva;
        let mut rest = buf;
        while !rest.is_empty() {
            let (gpa, left) = self.translate(gva)?;
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut_checked(len)?;
            self.memory.read(gpa, now).ok()?;
            gva = gva.checked_add(u64::try_from(len).ok()?)?;
            rest = later;
        }
        Some(())
    }

    /// Eight bytes at `gva`.
    pub(crate) fn read_u64(&self, gva: Gva) -> Option<u64> {
        let mut buf = [0; 8];
        self.read(gva, &mut buf)?;
        Some(u64::from_le_bytes(buf))
    }

    /// Four bytes at `gva`.
    pub(crate) fn read_u32(&self, gva: Gva) -> Option<u32> {
        let mut buf = [0; 4];
        self.read(gva, &mut buf)?;
        Some(u32::from_le_bytes(buf))
    }

    /// A pointer at `gva`; `None` also when it is null.
    pub(crate) fn read_pointer(&self, gva: Gva) -> Option<Gva> {
        self.read_u64(gva).filter(|&p| p != 0).map(Gva)
    }

    /// Eight bytes at `offset` of the object at `object`; `None` also if the address overflows.
    pub(crate) fn read_field(&self, object: Gva, offset: u64) -> Option<u64> {
        self.read_u64(object.checked_add(offset)?)
    }

    /// A pointer field; `None` also if the pointer is null.
    pub(crate) fn read_pointer_field(&self, object: Gva, offset: u64) -> Option<Gva> {
        self.read_pointer(object.checked_add(offset)?)
    }

    /// A NUL-terminated string of at most 255 bytes, with trailing white space removed, escaped for
    /// display.
    pub(crate) fn read_string(&self, gva: Gva) -> Option<String> {
        let mut buf = [0; MAX_STRING];
        // The string may end just before an unmapped page, so read only up to the page's end first.
        let to_page_end = FRAME_BYTES.saturating_sub(gva.offset_in_frame());
        let first = to_page_end.min(MAX_STRING);
        self.read(gva, buf.get_mut(..first)?)?;
        let mut end = memchr::memchr(0, buf.get(..first)?);
        if end.is_none() && first < MAX_STRING {
            let next = gva.checked_add(u64::try_from(first).ok()?)?;
            self.read(next, buf.get_mut(first..)?)?;
            end = memchr::memchr(0, &buf);
        }
        Some(escape(buf.get(..end.unwrap_or(MAX_STRING))?.trim_ascii_end()))
    }
}
