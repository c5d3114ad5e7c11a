//! Mappings of guest memory, which a guest may be writing to at any time.

#![expect(unsafe_code, reason = "maps guest memory and reads what a guest writes")]

use crate::memory::PageSize;
use libc::{iovec, process_vm_readv, process_vm_writev};
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};
use rustix::process::getpid;
use std::any::Any;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// What becomes of writes to a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sharing {
    /// They are the file's.
    Shared,
    /// They are the mapping's own: copy on write.
    Private,
}

/// Bytes of a file that a range of a mapping is to show.
#[derive(Clone, Debug)]
pub(crate) struct Overlay<'a> {
    /// Bytes of the mapping.
    pub(crate) range: Range<usize>,
    pub(crate) file: BorrowedFd<'a>,
    /// Where they begin in the file.
    pub(crate) offset: usize,
    /// Why nobody changes them.
    pub(crate) stands: Immutability,
}

/// Why the bytes of a file do not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Immutability {
    /// It is sealed against writing.
    Sealed,
    /// They are pages of the host's content store, which it does not write to while they are
    /// pinned; whoever maps them has the pins.
    Pinned,
}

/// Memory that a guest sees as its RAM. Unmapped on drop, unless it is somebody else's.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    /// None of it when somebody else's memory may be there now.
    len: usize,
    sharing: Sharing,
    owner: Owner,
    /// Dropped when it is unmapped.
    kept: Option<Arc<dyn Any + Send + Sync>>,
}

/// Whose a mapping is.
#[derive(Debug)]
enum Owner {
    /// This value's.
    Ours,
    /// A VMM's; it lives as long as this.
    #[cfg(feature = "vm-memory")]
    Theirs(#[expect(dead_code, reason = "keeps the mapping")] Arc<vm_memory::MmapRegion>),
}

// SAFETY: the mapping is unmapped by its owner alone, who lives as long as this value. Its bytes
// are copied by the kernel, and never referred to, so that several threads, and a guest, may use
// them at once.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file, for reading and writing. Memory is taken as it is
    /// used; what huge pages a shared mapping may use is set aside.
    pub(crate) fn of_file(
        file: BorrowedFd<'_>,
        len: usize,
        sharing: Sharing,
    ) -> Result<Self, Errno> {
        let flags = match sharing {
            Sharing::Shared => MapFlags::SHARED,
            Sharing::Private => MapFlags::PRIVATE | MapFlags::NORESERVE,
        };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start = unsafe { mmap(std::ptr::null_mut(), len, access, flags, file, 0) }?;
        Self::at(start, len, sharing)
    }

    /// Maps memory without a file: `len` bytes, which are whole pages.
    pub(crate) fn anonymous(len: usize, pages: PageSize) -> Result<Self, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let flags = match pages {
            PageSize::Small => flags,
            PageSize::Huge => flags | MapFlags::HUGETLB | MapFlags::HUGE_2MB,
        };
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) }?;
        Self::at(start, len, Sharing::Private)
    }

    fn at(start: *mut std::ffi::c_void, len: usize, sharing: Sharing) -> Result<Self, Errno> {
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, len, sharing, owner: Owner::Ours, kept: None })
    }

    /// The same mapping, which keeps something as long as it is there: what its parts show, and
    /// must not change before.
    pub(crate) fn keeping(mut self, kept: Arc<dyn Any + Send + Sync>) -> Self {
        self.kept = Some(kept);
        self
    }

    /// A VMM's mapping, whose pages are not there yet.
    #[cfg(feature = "vm-memory")]
    pub(crate) fn of_region(region: Arc<vm_memory::MmapRegion>) -> Result<Self, Errno> {
        let start = NonNull::new(region.as_ptr()).ok_or(Errno::INVAL)?;
        let len = region.size();
        let owner = Owner::Theirs(region);
        Ok(Self { start, len, sharing: Sharing::Private, owner, kept: None })
    }

    /// Has a range show bytes of another file instead, copy on write.
    pub(crate) fn overlay(&self, part: Overlay<'_>) -> Result<(), Errno> {
        let Overlay { range, file, offset, .. } = part;
        let start = self.part(&range)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        let offset = u64::try_from(offset).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the range lies in this mapping, and nobody holds a reference into it.
        unsafe { mmap(start.cast(), range.len(), access, flags, file, offset) }?;
        Ok(())
    }

    /// Has a shared mapping, all of it, become a private one of the same file, at the same
    /// addresses: whoever knows those sees the same bytes, and its writes are its own from here
    /// on. Takes time in proportion to the pages that were used since they were
    /// [forgotten](Mapping::forget).
    ///
    /// # Errors
    /// [`Errno::INVAL`] when it is private, or somebody else's; otherwise the mapping is lost,
    /// which the system refuses a mapping that it gave before ([`Mapping::of_file`]) only for
    /// want of memory for its own books. Everybody who knows its addresses has to be kept from
    /// using them then.
    pub(crate) fn make_private(&mut self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.sharing != Sharing::Shared || !matches!(self.owner, Owner::Ours) {
            return Err(Errno::INVAL);
        }
        self.sharing = Sharing::Private;
        // The kernel may have unmapped it when it fails; then the addresses are free for others,
        // whose memory is neither to be read nor unmapped.
        let len = std::mem::take(&mut self.len);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range is the mapping, of which nobody holds references.
        unsafe { mmap(self.start.as_ptr().cast(), len, access, flags, file, 0) }?;
        self.len = len;
        Ok(())
    }

    /// Has processors and VMs forget where the pages of a range are. They are in the file, where
    /// the next use of each finds it again.
    ///
    /// # Errors
    /// [`Errno::INVAL`] when the range is not in the mapping, or the mapping is private: its pages
    /// may be nowhere else.
    pub(crate) fn forget(&self, range: Range<usize>) -> Result<(), Errno> {
        if self.sharing != Sharing::Shared {
            return Err(Errno::INVAL);
        }
        let start = self.part(&range)?;
        // SAFETY: the range lies in this mapping, into which there are no references; and in a
        // shared mapping of a file the advice changes no byte.
        unsafe { madvise(start.cast(), range.len(), Advice::LinuxDontNeed) }
    }

    /// The address of a range that lies in the mapping.
    fn part(&self, range: &Range<usize>) -> Result<*mut u8, Errno> {
        if range.start > range.end || range.end > self.len {
            return Err(Errno::INVAL);
        }
        // SAFETY: the offset is at most the mapping's length.
        Ok(unsafe { self.start.as_ptr().add(range.start) })
    }

    /// Where the mapping begins.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    /// Bytes of the mapping.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Gives every page of the range memory of its own, with the bytes that it has.
    pub(crate) fn populate(&self, range: Range<usize>) -> Result<(), Errno> {
        let start = self.part(&range)?;
        // SAFETY: the range lies in this mapping; the advice changes no byte of it.
        unsafe { madvise(start.cast(), range.len(), Advice::LinuxPopulateWrite) }
    }

    /// Forgets what the range holds, as a balloon has the system do.
    #[cfg(test)]
    pub(crate) fn discard(&self, range: Range<usize>) -> Result<(), Errno> {
        let start = self.part(&range)?;
        // SAFETY: the range lies in this mapping, into which there are no references.
        unsafe { madvise(start.cast(), range.len(), Advice::LinuxDontNeed) }
    }

    /// Takes all access to the mapping away, for good.
    ///
    /// # Errors
    /// [`Errno::PERM`] when it is somebody else's, who may be using it.
    pub(crate) fn revoke(&self) -> Result<(), Errno> {
        if !matches!(self.owner, Owner::Ours) {
            return Err(Errno::PERM);
        }
        // SAFETY: the range is the mapping, into which there are no references.
        unsafe { mprotect(self.start.as_ptr().cast(), self.len, MprotectFlags::empty()) }
    }

    /// Copies bytes out. A guest that writes them meanwhile may be seen in the middle of it.
    ///
    /// The kernel copies: memory that has been revoked is an error then, and not the process's end;
    /// and what a guest writes at the same time is no matter of the language's rules.
    ///
    /// # Errors
    /// [`Errno::INVAL`] when the range is not in the mapping, [`Errno::FAULT`] when it was revoked.
    pub(crate) fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), Errno> {
        let end = offset.checked_add(buf.len()).ok_or(Errno::INVAL)?;
        let here = iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let there = iovec { iov_base: self.part(&(offset..end))?.cast(), iov_len: buf.len() };
        let process = getpid().as_raw_pid();
        // SAFETY: the call writes to `buf` alone, and reads this process's memory, the range of
        // which lies in the mapping.
        let copied = unsafe { process_vm_readv(process, &here, 1, &there, 1, 0) };
        all_of(copied, buf.len())
    }

    /// Copies bytes in. A guest may see part of them.
    ///
    /// # Errors
    /// As for [`Mapping::read`].
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        let end = offset.checked_add(bytes.len()).ok_or(Errno::INVAL)?;
        let here = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let there = iovec { iov_base: self.part(&(offset..end))?.cast(), iov_len: bytes.len() };
        let process = getpid().as_raw_pid();
        // SAFETY: the call reads `bytes`, which it does not change, and writes to this process's
        // memory, in a range that lies in the mapping, to which there are no references.
        let copied = unsafe { process_vm_writev(process, &here, 1, &there, 1, 0) };
        all_of(copied, bytes.len())
    }
}

/// Whether all bytes were copied. The kernel stops at the first that cannot be.
fn all_of(copied: isize, bytes: usize) -> Result<(), Errno> {
    match usize::try_from(copied) {
        Ok(copied) if copied == bytes => Ok(()),
        Ok(_) => Err(Errno::FAULT),
        Err(_) => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !matches!(self.owner, Owner::Ours) || self.len == 0 {
            return;
        }
        // SAFETY: the mapping is this value's, and nothing refers to it any more. Whoever gave its
        // address to a VM keeps it alive as long as the VM.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Bytes that never change, mapped for reading: files sealed against writing.
#[derive(Debug)]
pub(crate) struct Sealed(Mapping);

impl Sealed {
    /// Maps the first `len` bytes of a file, and ranges of others over them.
    ///
    /// # Errors
    /// [`Errno::PERM`] when one of the files is not sealed against shrinking and writing, as the
    /// content store's never is. Whoever sealed it has no mapping left that could write.
    pub(crate) fn of_files(
        base: BorrowedFd<'_>,
        len: usize,
        over: &[Overlay<'_>],
    ) -> Result<Self, Errno> {
        require_seals(base)?;
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, base, 0) }?;
        let mapping = Mapping::at(start, len, Sharing::Shared)?;
        for Overlay { range, file, offset, .. } in over {
            require_seals(file)?;
            let start = mapping.part(range)?;
            let offset = u64::try_from(*offset).map_err(|_| Errno::OVERFLOW)?;
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: the range lies in the mapping, of which nobody knows yet.
            unsafe { mmap(start.cast(), range.len(), ProtFlags::READ, flags, file, offset) }?;
        }
        Ok(Self(mapping))
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the files are sealed: nobody can shrink them, or write to them through a file
        // descriptor or a new mapping, in this process or another (`require_seals`); the
        // only mapping from before the seal became a private one (`GuestRam::freeze`), or is gone
        // (`SharedPageCache::freeze`), and none was ever handed out with a file that becomes an
        // image. This mapping is read-only and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }
}

fn require_seals(file: impl AsFd) -> Result<(), Errno> {
    let seals = fcntl_get_seals(file)?;
    let is_sealed = seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
    if is_sealed && seals.contains(SealFlags::SHRINK) { Ok(()) } else { Err(Errno::PERM) }
}
