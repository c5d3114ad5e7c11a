//! Mappings of guest memory, which a guest may be writing to at any time.

#![expect(unsafe_code, reason = "maps guest memory and reads what a guest writes")]

use crate::memory::PageSize;
use libc::{iovec, process_vm_readv, process_vm_writev};
use parking_lot::Mutex;
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
use std::sync::atomic::AtomicBool;
#[cfg(feature = "machine")]
use std::sync::atomic::Ordering;

/// Where writes to a mapping go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sharing {
    /// To the file.
    Shared,
    /// To private copies of the pages (copy on write).
    Private,
}

/// Bytes of a file that a range of a mapping shows.
#[derive(Clone, Debug)]
pub(crate) struct Overlay<'a> {
    /// Bytes of the mapping.
    pub(crate) range: Range<usize>,
    pub(crate) file: BorrowedFd<'a>,
    /// Offset of the first byte in the file.
    pub(crate) offset: usize,
    /// Why they do not change.
    pub(crate) stands: Immutability,
}

/// Why the bytes of a file do not change.
#[derive(Clone, Debug)]
pub(crate) enum Immutability {
    /// The file is sealed against writing.
    Sealed,
    /// They are pages of the host's content store, which does not write to a page while it is
    /// pinned. The value holds the pins.
    Pinned(Arc<dyn Any + Send + Sync>),
}

/// Addresses of this process that guest memory occupies, and what the memory shows. They are
/// unmapped when the last value that uses them is dropped: the [`Mapping`], and each VM that has a
/// [`Slot`] of it.
#[derive(Debug)]
struct Addresses {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
    /// Whether other memory may be at these addresses now.
    is_lost: AtomicBool,
    /// What has to live as long as the memory is mapped.
    kept: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
}

/// The owner of a mapping.
#[derive(Debug)]
enum Owner {
    /// This value.
    Ours,
    /// A VMM; the mapping lives as long as this.
    #[cfg(feature = "vm-memory")]
    Theirs(#[expect(dead_code, reason = "keeps the mapping")] Arc<vm_memory::MmapRegion>),
}

// SAFETY: `start` is only an address: `Addresses` never creates a reference from it, and unmaps the
// range once, in `drop`, which has exclusive access. All other fields are `Send` and `Sync`.
unsafe impl Send for Addresses {}
// SAFETY: as above.
unsafe impl Sync for Addresses {}

impl Drop for Addresses {
    fn drop(&mut self) {
        if !matches!(self.owner, Owner::Ours) || *self.is_lost.get_mut() {
            return;
        }
        // SAFETY: `Mapping::at` received the range from mmap and gave it to this value alone, and
        // `is_lost` says that it is still mapped. No other value uses it: users hold an `Arc` of
        // this value (`Mapping`, `Slot`), and references into it exist only in `Sealed::bytes`,
        // which borrows the mapping.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Memory that a guest sees as its RAM. The guest, the kernel and other threads may write to it at
/// any time; therefore its bytes are copied by the kernel, and no reference to them exists.
#[derive(Debug)]
pub(crate) struct Mapping {
    addresses: Arc<Addresses>,
    /// Bytes of the mapping; 0 when other memory may be at its addresses.
    len: usize,
    sharing: Sharing,
}

/// A part of a mapping that a VM has as guest memory. The addresses stay mapped as long as this
/// lives.
#[derive(Debug)]
pub(crate) struct Slot {
    addresses: Arc<Addresses>,
    part: Range<usize>,
}

#[cfg(feature = "machine")]
impl Slot {
    /// A part of a mapping, in bytes of it.
    ///
    /// # Errors
    /// [`Errno::INVAL`] when the part does not lie in the mapping.
    pub(crate) fn of(mapping: &Mapping, part: Range<usize>) -> Result<Self, Errno> {
        mapping.part(&part)?;
        Ok(Self { addresses: Arc::clone(&mapping.addresses), part })
    }

    /// Address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        (self.addresses.start.as_ptr().addr() + self.part.start) as u64
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.part.len() as u64
    }
}

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
        Ok(Self::owned_by(Owner::Ours, start, len, sharing))
    }

    fn owned_by(owner: Owner, start: NonNull<u8>, len: usize, sharing: Sharing) -> Self {
        let (is_lost, kept) = (AtomicBool::new(false), Mutex::default());
        let addresses = Arc::new(Addresses { start, len, owner, is_lost, kept });
        Self { addresses, len, sharing }
    }

    fn start(&self) -> *mut u8 {
        self.addresses.start.as_ptr()
    }

    /// A VMM's mapping, whose pages are not there yet.
    #[cfg(feature = "vm-memory")]
    pub(crate) fn of_region(region: Arc<vm_memory::MmapRegion>) -> Result<Self, Errno> {
        let start = NonNull::new(region.as_ptr()).ok_or(Errno::INVAL)?;
        let len = region.size();
        Ok(Self::owned_by(Owner::Theirs(region), start, len, Sharing::Private))
    }

    /// Makes a range show bytes of another file instead, copy on write. Pins of its pages live as
    /// long as the mapping.
    pub(crate) fn overlay(&self, part: Overlay<'_>) -> Result<(), Errno> {
        let Overlay { range, file, offset, stands } = part;
        let start = self.part(&range)?;
        if let Immutability::Pinned(pins) = stands {
            self.addresses.kept.lock().push(pins);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        let offset = u64::try_from(offset).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: `part` checked that the range lies in this mapping, and `Mapping` hands out no
        // reference to its bytes.
        unsafe { mmap(start.cast(), range.len(), access, flags, file, offset) }?;
        Ok(())
    }

    /// Replaces a shared mapping, all of it, by a private one of the same file at the same
    /// addresses: readers see the same bytes, and later writes are the mapping's own. Takes time in
    /// proportion to the pages that were used since they were [forgotten](Mapping::forget).
    ///
    /// # Errors
    /// [`Errno::INVAL`] when it is private, or a VMM's. After any other error the mapping is lost:
    /// other memory may be at its addresses, and the caller has to keep every vCPU that knows them
    /// from running. The system fails in this way only when it has no memory for its own tables,
    /// since it mapped the same file before ([`Mapping::of_file`]).
    #[cfg(feature = "machine")]
    pub(crate) fn make_private(&mut self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.sharing != Sharing::Shared || !matches!(self.addresses.owner, Owner::Ours) {
            return Err(Errno::INVAL);
        }
        self.sharing = Sharing::Private;
        // The kernel may unmap the range and then fail. Another mmap of this process may then get
        // these addresses, so they must be neither accessed (`len`) nor unmapped (`is_lost`).
        let len = std::mem::take(&mut self.len);
        self.addresses.is_lost.store(true, Ordering::Release);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range is this mapping: `len` was not 0 before, or the length is invalid and
        // the call fails. `Mapping` hands out no reference to its bytes.
        unsafe { mmap(self.start().cast(), len, access, flags, file, 0) }?;
        self.addresses.is_lost.store(false, Ordering::Release);
        self.len = len;
        Ok(())
    }

    /// Removes the pages of a range from the page tables of processes and VMs. The next use of each
    /// finds it in the file again.
    ///
    /// # Errors
    /// [`Errno::INVAL`] when the range is not in the mapping, or the mapping is private: its pages
    /// may exist nowhere else.
    #[cfg(feature = "machine")]
    pub(crate) fn forget(&self, range: Range<usize>) -> Result<(), Errno> {
        if self.sharing != Sharing::Shared {
            return Err(Errno::INVAL);
        }
        let start = self.part(&range)?;
        // SAFETY: `part` checked that the range lies in this mapping, to whose bytes `Mapping`
        // hands out no reference. It is shared (checked above), so the advice changes no byte.
        unsafe { madvise(start.cast(), range.len(), Advice::LinuxDontNeed) }
    }

    /// The address of a range that lies in the mapping.
    fn part(&self, range: &Range<usize>) -> Result<*mut u8, Errno> {
        if range.start > range.end || range.end > self.len {
            return Err(Errno::INVAL);
        }
        // SAFETY: `self.len` bytes from the start are mapped (`Mapping::at`, `make_private`), and
        // the offset is at most `self.len` (checked above).
        Ok(unsafe { self.start().add(range.start) })
    }

    /// Address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        self.start().addr() as u64
    }

    /// Bytes of the mapping.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Gives every page of the range memory of its own, with unchanged bytes.
    pub(crate) fn populate(&self, range: Range<usize>) -> Result<(), Errno> {
        let start = self.part(&range)?;
        // SAFETY: `part` checked that the range lies in this mapping; the advice changes no byte.
        unsafe { madvise(start.cast(), range.len(), Advice::LinuxPopulateWrite) }
    }

    /// Discards the bytes of the range, as a balloon does.
    #[cfg(test)]
    pub(crate) fn discard(&self, range: Range<usize>) -> Result<(), Errno> {
        let start = self.part(&range)?;
        // SAFETY: `part` checked that the range lies in this mapping, to whose bytes `Mapping`
        // hands out no reference.
        unsafe { madvise(start.cast(), range.len(), Advice::LinuxDontNeed) }
    }

    /// Forbids all access to the mapping, for good.
    ///
    /// # Errors
    /// [`Errno::PERM`] when it is a VMM's, whose threads may be using it.
    pub(crate) fn revoke(&self) -> Result<(), Errno> {
        if !matches!(self.addresses.owner, Owner::Ours) {
            return Err(Errno::PERM);
        }
        // SAFETY: `self.len` bytes from the start are this mapping, to whose bytes `Mapping` hands
        // out no reference that could fault.
        unsafe { mprotect(self.start().cast(), self.len, MprotectFlags::empty()) }
    }

    /// Copies bytes out. What the guest writes at the same time may be copied in part.
    ///
    /// The kernel copies: revoked memory is then an error, not the end of the process, and
    /// concurrent writes of the guest are not data races of this program.
    ///
    /// # Errors
    /// [`Errno::INVAL`] when the range is not in the mapping, [`Errno::FAULT`] when it was revoked.
    pub(crate) fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), Errno> {
        let end = offset.checked_add(buf.len()).ok_or(Errno::INVAL)?;
        let here = iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let there = iovec { iov_base: self.part(&(offset..end))?.cast(), iov_len: buf.len() };
        let process = getpid().as_raw_pid();
        // SAFETY: the call writes to `here`, which is `buf` with its length, borrowed exclusively;
        // it only reads `there`.
        let copied = unsafe { process_vm_readv(process, &here, 1, &there, 1, 0) };
        all_of(copied, buf.len())
    }

    /// Copies bytes in. The guest may see them in part.
    ///
    /// # Errors
    /// As for [`Mapping::read`].
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        let end = offset.checked_add(bytes.len()).ok_or(Errno::INVAL)?;
        let here = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let there = iovec { iov_base: self.part(&(offset..end))?.cast(), iov_len: bytes.len() };
        let process = getpid().as_raw_pid();
        // SAFETY: the call only reads `here`, which is `bytes` with its length. It writes to
        // `there`, which `part` checked to lie in this mapping, to whose bytes `Mapping` hands out
        // no reference; `Sealed` does, but does not call this.
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

/// Bytes that never change, mapped for reading: files that are sealed against writing.
///
/// Why a slice of them cannot change:
/// - `require_seals` checks the seals of every file that is mapped. From then on, in every process,
///   no descriptor writes to it, shrinks it or punches a hole in it, and no new mapping can write.
/// - Mappings from before the seal could still write. Of a machine's memory file there was one, and
///   `GuestRam::freeze` made it private. Of a page cache's file there was one that fills it, and
///   `SharedPageCache::freeze` dropped it. A file whose descriptor other processes have received
///   never becomes an image (`SharedPageCache::file`, `ContentStore::file`). Layers of later images
///   are written through their descriptor only (`PageCopier`).
/// - A userfaultfd fills a missing page of a file only through a shared mapping that can write.
#[derive(Debug)]
pub(crate) struct Sealed(Mapping);

impl Sealed {
    /// Maps the first `len` bytes of a file, and ranges of others over them.
    ///
    /// # Errors
    /// [`Errno::PERM`] when one of the files is not sealed against shrinking and writing, as the
    /// content store's never is.
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
            // SAFETY: `part` checked that the range lies in `mapping`, which this function made and
            // has not returned yet.
            unsafe { mmap(start.cast(), range.len(), ProtFlags::READ, flags, file, offset) }?;
        }
        Ok(Self(mapping))
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `Sealed::of_files` mapped `len` bytes from the start, readable, and `self` keeps
        // them mapped. They do not change, as the type's documentation shows.
        unsafe { std::slice::from_raw_parts(self.0.start(), self.0.len) }
    }
}

fn require_seals(file: impl AsFd) -> Result<(), Errno> {
    let seals = fcntl_get_seals(file)?;
    let is_sealed = seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
    if is_sealed && seals.contains(SealFlags::SHRINK) { Ok(()) } else { Err(Errno::PERM) }
}
