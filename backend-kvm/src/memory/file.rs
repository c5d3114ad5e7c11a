//! Memory files (memfd).

use super::PageSize;
use crate::error::{Asked, Error};
use kaleidoscope_core::addr::FRAME_BYTES;
use rustix::fs::{
    MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fcntl_getfl, fstat, fstatfs,
    ftruncate, memfd_create,
};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// File system type that fstatfs(2) reports for a memfd (TMPFS_MAGIC).
pub(crate) const TMPFS: i64 = 0x0102_1994;

/// The type of the file system of a file.
pub(crate) fn file_system(file: impl AsFd) -> Result<i64, Errno> {
    #[expect(clippy::useless_conversion, reason = "the type differs between C libraries")]
    let kind = i64::from(fstatfs(file)?.f_type);
    Ok(kind)
}

/// Why a memory file from another process is rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum UnfitFile {
    /// It is a file on a disk, or not a file.
    #[error("it is not a memory file (memfd) of 4 KiB pages")]
    NotMemory,
    /// It is open read-only or for appending.
    #[error("it is not open for reading and writing anywhere in it")]
    Access,
    /// Its size can change, or its contents cannot.
    #[error("its size must be sealed (F_SEAL_SHRINK, F_SEAL_GROW), its contents must not be")]
    Seals,
}

/// Guest memory in a memfd, in frame-index order. Pages are allocated as they are written.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: File,
    len: usize,
    pages: PageSize,
}

impl MemoryFile {
    /// A zeroed file of `len` bytes on 4 KiB pages.
    pub(crate) fn new(len: usize) -> Result<Self, Error> {
        Self::of_pages(len, PageSize::Small)
    }

    /// A zeroed file of `len` bytes, rounded up to a whole page. A file of huge pages can only be
    /// written through mappings.
    pub(crate) fn of_pages(len: usize, pages: PageSize) -> Result<Self, Error> {
        let len = pages.round_up(len);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let flags = match pages {
            PageSize::Small => flags,
            PageSize::Huge => flags | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        };
        let fd = memfd_create("kaleidoscope", flags).asked("making a memory file")?;
        let size = u64::try_from(len).unwrap_or(u64::MAX);
        ftruncate(&fd, size).asked("sizing a memory file")?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)
            .asked("sealing the size of a memory file")?;
        Ok(Self { file: File::from(fd), len, pages })
    }

    /// Takes over a memory file from another process. It must have 4 KiB pages, be open for reading
    /// and writing, and have its size sealed.
    pub(crate) fn of_others(fd: OwnedFd) -> Result<Result<Self, UnfitFile>, Error> {
        let what = "looking at a memory file";
        if file_system(&fd).asked(what)? != TMPFS {
            return Ok(Err(UnfitFile::NotMemory));
        }
        let access = fcntl_getfl(&fd).asked(what)?;
        if access & (OFlags::ACCMODE | OFlags::APPEND | OFlags::PATH) != OFlags::RDWR {
            return Ok(Err(UnfitFile::Access));
        }
        let seals = fcntl_get_seals(&fd).asked(what)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW)
            || seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE)
        {
            return Ok(Err(UnfitFile::Seals));
        }
        fcntl_setfd(&fd, FdFlags::CLOEXEC).asked(what)?;
        let len = usize::try_from(fstat(&fd).asked(what)?.st_size).unwrap_or(usize::MAX);
        Ok(Ok(Self { file: File::from(fd), len, pages: PageSize::Small }))
    }

    /// Its size in bytes, allocated or not.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its page size.
    pub(crate) fn pages(&self) -> PageSize {
        self.pages
    }

    /// Bytes of memory allocated for it, as the kernel counts them.
    pub(crate) fn taken(&self) -> Result<u64, Error> {
        let status = fstat(&self.file).asked("looking at a memory file")?;
        // Blocks are 512 bytes on every file system (stat(3type)).
        Ok(u64::try_from(status.st_blocks).unwrap_or(0) * 512)
    }

    /// Writes bytes at an offset.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        self.file.write_all_at(bytes, offset).asked("writing to a memory file")
    }

    /// Reads bytes at an offset.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Error> {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        self.file.read_exact_at(bytes, offset).asked("reading a memory file")
    }

    /// Seals the file against writes, except through existing mappings.
    ///
    /// `F_SEAL_WRITE`, which also forbids those, scans every page, waits for all processors, and
    /// fails while KVM holds a page for a moment: it would take longer than the freeze. The caller
    /// therefore owns the only writable mapping, and drops it.
    pub(crate) fn seal(&self) -> Result<(), Error> {
        fcntl_add_seals(&self.file, SealFlags::FUTURE_WRITE).asked("sealing snapshot memory")
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Converts a range of frames to a range of bytes.
pub(crate) fn bytes_of(frames: &std::ops::Range<u32>) -> std::ops::Range<usize> {
    frames.start as usize * FRAME_BYTES..frames.end as usize * FRAME_BYTES
}

/// Converts a range of bytes to a range of frames.
pub(crate) fn frames_of(bytes: &std::ops::Range<usize>) -> std::ops::Range<u32> {
    let frame = |offset: usize| u32::try_from(offset / FRAME_BYTES).unwrap_or(u32::MAX);
    frame(bytes.start)..frame(bytes.end)
}
