//! Memory mappings of the guest agent. Only this file of the lab makes raw system calls.

#![expect(unsafe_code, reason = "memory mappings and their residency have no safe interface")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;

/// Size of a base page in bytes.
pub(crate) const PAGE: usize = 4096;
/// Size of a huge page in bytes.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// `MADV_PAGEOUT`, Linux 5.4.
const MADV_PAGEOUT: libc::c_int = 21;

/// The memory behind a new mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Fresh zeros of this process alone.
    Private,
    /// Fresh zeros shared with children (a file on the kernel's own tmpfs).
    Shared,
    /// Pages of the huge page pool.
    HugePool,
}

/// Advice for the kernel on a range (madvise(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Accesses follow no order: no readahead.
    Random,
    /// Use transparent huge pages.
    Huge,
    /// Merge equal pages.
    Mergeable,
    /// Write out and free now.
    PageOut,
    /// Forget the contents.
    DontNeed,
}

/// A mapping, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
    writable: bool,
}

impl Mapping {
    /// Maps `length` bytes of fresh memory, readable and writable.
    pub(crate) fn anonymous(length: usize, backing: Backing) -> io::Result<Self> {
        let flags = match backing {
            Backing::Private => libc::MAP_PRIVATE,
            Backing::Shared => libc::MAP_SHARED,
            Backing::HugePool => libc::MAP_PRIVATE | libc::MAP_HUGETLB,
        };
        Self::map(length, libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Maps part of `file` shared and read-only; `offset` must be a multiple of the page size.
    pub(crate) fn file(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        Self::map(length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset)
    }

    /// Maps part of `file` writable; writes go to the file if `shared`, else to private copies.
    pub(crate) fn file_mut(file: &File, length: usize, shared: bool) -> io::Result<Self> {
        let flags = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        Self::map(length, libc::PROT_READ | libc::PROT_WRITE, flags, file.as_raw_fd(), 0)
    }

    /// Attaches a new System V segment, already marked to be removed with its last user.
    pub(crate) fn system_v(length: usize) -> io::Result<Self> {
        // SAFETY: shmget takes no pointers.
        let id = unsafe { libc::shmget(libc::IPC_PRIVATE, length, libc::IPC_CREAT | 0o600) };
        check(id)?;
        // SAFETY: a null address lets the kernel choose a free range, so that no existing memory
        // is replaced.
        let start = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        // SAFETY: IPC_RMID ignores its buffer argument.
        check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) })?;
        // shmat returns -1 as a pointer on failure.
        if start.addr() == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        Self::new(start, length, true)
    }

    fn map(
        length: usize,
        protection: libc::c_int,
        flags: libc::c_int,
        fd: libc::c_int,
        offset: u64,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a null address without MAP_FIXED lets the kernel choose a free range, so that no
        // existing memory is replaced. `fd` is open (the callers borrow its `File`) or, for
        // anonymous memory, -1.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Self::new(start, length, protection & libc::PROT_WRITE != 0)
    }

    fn new(start: *mut libc::c_void, length: usize, writable: bool) -> io::Result<Self> {
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { start, length, writable })
    }

    /// Virtual address of the first byte.
    pub(crate) fn address(&self) -> usize {
        self.start.addr().get()
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Whether each page is resident (mincore(2)): for files, in the page cache.
    pub(crate) fn residency(&self) -> io::Result<Vec<bool>> {
        let mut bytes = vec![0u8; self.length.div_ceil(PAGE)];
        // SAFETY: `self` owns the range, and the kernel writes one byte per page of it into
        // `bytes`, which has that many (allocated above).
        check(unsafe {
            libc::mincore(self.start.as_ptr().cast(), self.length, bytes.as_mut_ptr())
        })?;
        Ok(bytes.into_iter().map(|byte| byte & 1 == 1).collect())
    }

    /// Reads one byte, so that the page is mapped.
    ///
    /// # Errors
    /// If the byte is outside of the mapping.
    pub(crate) fn touch(&self, offset: usize) -> io::Result<()> {
        let byte = self.byte(offset)?;
        // SAFETY: `byte` has checked that the byte lies in the mapping, which is readable while
        // `self` lives. The read is volatile because another process may write to a shared file
        // at the same time, and because the access itself is the purpose. If the file is
        // truncated meanwhile, SIGBUS ends the process, which is no memory error; the agent is
        // the lab's own, and no workload truncates files now.
        unsafe { byte.read_volatile() };
        Ok(())
    }

    /// Writes one byte.
    ///
    /// # Errors
    /// If the byte is outside of the mapping or the mapping is read-only.
    pub(crate) fn write(&self, offset: usize, value: u8) -> io::Result<()> {
        let byte = self.byte(offset)?;
        if !self.writable {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        // SAFETY: `byte` has checked that the byte lies in the mapping, and the mapping is
        // writable (checked above). Volatile for the reasons given in `touch`.
        unsafe { byte.write_volatile(value) };
        Ok(())
    }

    /// The address of a byte inside of the mapping.
    fn byte(&self, offset: usize) -> io::Result<*mut u8> {
        if offset >= self.length {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        Ok(self.start.as_ptr().wrapping_add(offset))
    }

    /// The contents of a private anonymous mapping.
    ///
    /// # Errors
    /// If the mapping is read-only.
    pub(crate) fn bytes_mut(&mut self) -> io::Result<&mut [u8]> {
        if !self.writable {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        // SAFETY: the range is mapped, initialized (by zeros or by the file's contents) and
        // writable (checked above) as long as `self` lives, and `&mut self` makes this the only
        // Rust reference to it. The lab calls this only on private anonymous mappings, which no
        // other process writes to.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) })
    }

    /// Advises the kernel on `length` bytes at `offset`.
    pub(crate) fn advise(&self, offset: usize, length: usize, advice: Advice) -> io::Result<()> {
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > self.length) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let code = match advice {
            Advice::Random => libc::MADV_RANDOM,
            Advice::Huge => libc::MADV_HUGEPAGE,
            Advice::Mergeable => libc::MADV_MERGEABLE,
            Advice::PageOut => MADV_PAGEOUT,
            Advice::DontNeed => libc::MADV_DONTNEED,
        };
        let start = self.start.as_ptr().wrapping_add(offset);
        // SAFETY: the range lies in this mapping (checked above). The only advice that changes
        // contents is DontNeed, which replaces them by zeros or the file's: still initialized.
        check(unsafe { libc::madvise(start.cast(), length, code) })
    }

    /// Keeps all pages in memory (mlock(2)).
    pub(crate) fn lock(&self) -> io::Result<()> {
        // SAFETY: mlock neither reads nor writes the contents.
        check(unsafe { libc::mlock(self.start.as_ptr().cast(), self.length) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value, and no reference into it outlives `self`.
        // System V segments are unmapped like any other range.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A new file without a name, in memory (memfd_create(2)).
pub(crate) fn memory_file(name: &std::ffi::CStr) -> io::Result<File> {
    // SAFETY: `name` is a NUL-terminated string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), 0) };
    check(fd)?;
    // SAFETY: the kernel returned a new descriptor (checked above), which has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Loads `kernel` and `initramfs` into the memory that `crashkernel=` reserved, so that a panic
/// boots them (kexec_file_load(2)). `command_line` is the crash kernel's, without a NUL.
///
/// # Errors
/// If no memory was reserved, the files are no kernel and initramfs, or the kernel refuses.
pub(crate) fn load_crash_kernel(
    kernel: &File,
    initramfs: &File,
    command_line: &std::ffi::CStr,
) -> io::Result<()> {
    // `KEXEC_FILE_ON_CRASH` of linux/kexec.h.
    const ON_CRASH: libc::c_ulong = 2;
    let words = command_line.to_bytes_with_nul();
    // SAFETY: both descriptors are open while their `File`s are borrowed. The kernel reads
    // `words.len()` bytes, the NUL included, from `words`, and writes to no memory of this process.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            words.len(),
            words.as_ptr(),
            ON_CRASH,
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn residency_follows_touching() {
        let memory = Mapping::anonymous(4 * PAGE, Backing::Private).unwrap();
        assert_eq!(memory.residency().unwrap(), [false; 4]);
        memory.write(2 * PAGE, 1).unwrap();
        assert_eq!(memory.residency().unwrap(), [false, false, true, false]);
        memory.advise(2 * PAGE, PAGE, Advice::DontNeed).unwrap();
        assert_eq!(memory.residency().unwrap(), [false; 4]);
    }

    #[test]
    fn files_are_mapped_read_only() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; PAGE]).unwrap();
        let mut mapping = Mapping::file(&file, 0, PAGE).unwrap();
        mapping.touch(PAGE - 1).unwrap();
        assert!(mapping.touch(PAGE).is_err());
        assert!(mapping.write(0, 1).is_err());
        assert!(mapping.bytes_mut().is_err());
        assert!(mapping.advise(PAGE, 1, Advice::Random).is_err());
    }

    #[test]
    fn shared_memory_of_all_kinds_is_writable() {
        let file = memory_file(c"test").unwrap();
        file.set_len(PAGE as u64).unwrap();
        let mappings = [
            Mapping::file_mut(&file, PAGE, true).unwrap(),
            Mapping::anonymous(PAGE, Backing::Shared).unwrap(),
            Mapping::system_v(PAGE).unwrap(),
        ];
        for mapping in mappings {
            mapping.write(0, 3).unwrap();
        }
        assert_eq!(file.metadata().unwrap().len(), PAGE as u64);
    }
}
