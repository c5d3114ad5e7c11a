//! Mappings of guest memory, which a guest may be writing to at any time.

#![expect(unsafe_code, reason = "maps guest memory and reads what a guest writes")]

use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

/// What becomes of writes to a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sharing {
    /// They are the file's.
    Shared,
    /// They are the mapping's own: copy on write.
    Private,
}

/// Memory that a guest sees as its RAM. Unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is unmapped by it alone. All access to its bytes is volatile and
// never forms a reference, so that several threads, and a guest, may use them at once.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file, for reading and writing. Memory is taken as it is used.
    pub(crate) fn of_file(file: BorrowedFd<'_>, len: usize, sharing: Sharing) -> Result<Self, Errno> {
        let flags = match sharing {
            Sharing::Shared => MapFlags::SHARED,
            Sharing::Private => MapFlags::PRIVATE,
        };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start = unsafe {
            mmap(std::ptr::null_mut(), len, access, flags | MapFlags::NORESERVE, file, 0)
        }?;
        Self::at(start, len)
    }

    /// Maps memory without a file.
    pub(crate) fn anonymous(len: usize) -> Result<Self, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) }?;
        Self::at(start, len)
    }

    fn at(start: *mut std::ffi::c_void, len: usize) -> Result<Self, Errno> {
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, len })
    }

    /// Has `range` show the same bytes of another file instead, copy on write.
    pub(crate) fn overlay(&self, range: Range<usize>, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let start = self.part(&range)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        let offset = u64::try_from(range.start).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the range lies in this mapping, and nobody holds a reference into it.
        unsafe { mmap(start.cast(), range.len(), access, flags, file, offset) }?;
        Ok(())
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

    fn advise(&self, range: Range<usize>, advice: Advice) -> Result<(), Errno> {
        let start = self.part(&range)?;
        // SAFETY: the range lies in this mapping, and no reference into it exists that the advice could invalidate.
        unsafe { madvise(start.cast(), range.len(), advice) }
    }

    /// Gives every page of the range memory of its own, with the bytes that it has.
    pub(crate) fn populate(&self, range: Range<usize>) -> Result<(), Errno> {
        self.advise(range, Advice::LinuxPopulateWrite)
    }

    /// Forgets what the range holds: the file's bytes show again, or zeros.
    pub(crate) fn discard(&self, range: Range<usize>) -> Result<(), Errno> {
        self.advise(range, Advice::LinuxDontNeed)
    }

    /// Copies bytes out. A guest that writes them meanwhile may be seen in the middle of it.
    ///
    /// # Errors
    /// [`Errno::INVAL`] when the range is not in the mapping.
    pub(crate) fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), Errno> {
        let end = offset.checked_add(buf.len()).ok_or(Errno::INVAL)?;
        let mut from = self.part(&(offset..end))?;
        let (head, words, tail) = (from.align_offset(8).min(buf.len()), 8, 1);
        let (first, rest) = buf.split_at_mut(head);
        let (middle, last) = rest.as_chunks_mut::<8>();
        for byte in first {
            // SAFETY: as many bytes as the buffer has lie in the mapping from `from` on.
            *byte = unsafe { from.read_volatile() };
            from = from.wrapping_add(tail);
        }
        for word in middle {
            // SAFETY: as above; the address is a multiple of 8 now.
            let value = unsafe { from.cast::<u64>().read_volatile() };
            *word = value.to_le_bytes();
            from = from.wrapping_add(words);
        }
        for byte in last {
            // SAFETY: as above.
            *byte = unsafe { from.read_volatile() };
            from = from.wrapping_add(tail);
        }
        Ok(())
    }

    /// Copies bytes in. A guest may see part of them.
    ///
    /// # Errors
    /// [`Errno::INVAL`] when the range is not in the mapping.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        let end = offset.checked_add(bytes.len()).ok_or(Errno::INVAL)?;
        let mut to = self.part(&(offset..end))?;
        for byte in bytes {
            // SAFETY: as many bytes as were given lie in the mapping from `to` on.
            unsafe { to.write_volatile(*byte) };
            to = to.wrapping_add(1);
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it any more. Whoever gave its address to a VM keeps it
        // alive as long as the VM.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Bytes that nobody can change: files sealed against writing, mapped for reading.
#[derive(Debug)]
pub(crate) struct Sealed(Mapping);

impl Sealed {
    /// Maps the first `len` bytes of a file, and ranges of others over them.
    ///
    /// # Errors
    /// [`Errno::PERM`] when one of the files is not sealed against writing and shrinking.
    pub(crate) fn of_files(
        base: BorrowedFd<'_>,
        len: usize,
        over: &[(Range<usize>, BorrowedFd<'_>)],
    ) -> Result<Self, Errno> {
        require_seals(base)?;
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, base, 0)
        }?;
        let mapping = Mapping::at(start, len)?;
        for (range, file) in over {
            require_seals(*file)?;
            let start = mapping.part(range)?;
            let offset = u64::try_from(range.start).map_err(|_| Errno::OVERFLOW)?;
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: the range lies in the mapping, of which nobody knows yet.
            unsafe { mmap(start.cast(), range.len(), ProtFlags::READ, flags, file, offset) }?;
        }
        Ok(Self(mapping))
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the files are sealed: nobody can write or shrink them, through whatever mapping or file descriptor, and
        // the mapping is read-only and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }
}

fn require_seals(file: impl AsFd) -> Result<(), Errno> {
    let seals = fcntl_get_seals(file)?;
    let needed = SealFlags::WRITE | SealFlags::SHRINK;
    if seals.contains(needed) { Ok(()) } else { Err(Errno::PERM) }
}
