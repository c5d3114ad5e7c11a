//! Files of memory.

use super::PageSize;
use crate::error::{Asked, KvmError};
use kaleidoscope_core::addr::FRAME_BYTES;
use rustix::fs::{
    MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fcntl_getfl, fstat, fstatfs,
    ftruncate, memfd_create,
};
use rustix::io::{FdFlags, fcntl_setfd};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use thiserror::Error;

/// What statfs(2) says of files of memory (TMPFS_MAGIC).
const TMPFS: i64 = 0x0102_1994;

/// Why a file of memory that another process made is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum UnfitFile {
    /// It is on a disk, or is no file.
    #[error("it is not a file of memory (memfd) of 4 KiB pages")]
    NotMemory,
    /// It is open for reading only, or for appending.
    #[error("it is not open for reading and writing anywhere in it")]
    Access,
    /// Somebody could change its size, or nobody can change its bytes.
    #[error("its size must be sealed (F_SEAL_SHRINK, F_SEAL_GROW), its contents must not be")]
    Seals,
}

/// Memory that has a file descriptor, in frame-index order. Takes memory as it is written.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: File,
    len: usize,
    pages: PageSize,
}

impl MemoryFile {
    /// An empty file, all zeros, of so many bytes.
    pub(crate) fn new(len: usize) -> Result<Self, KvmError> {
        Self::of_pages(len, PageSize::Small)
    }

    /// An empty file, all zeros, of so many bytes or, where its pages are larger, up to a page
    /// more. Files of huge pages are written to through mappings alone.
    pub(crate) fn of_pages(len: usize, pages: PageSize) -> Result<Self, KvmError> {
        let len = pages.round_up(len);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let flags = match pages {
            PageSize::Small => flags,
            PageSize::Huge => flags | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        };
        let fd = memfd_create("kaleidoscope", flags).asked("making a file of memory")?;
        let size = u64::try_from(len).unwrap_or(u64::MAX);
        ftruncate(&fd, size).asked("sizing a file of memory")?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)
            .asked("sealing the size of a file of memory")?;
        Ok(Self { file: File::from(fd), len, pages })
    }

    /// A file of memory that somebody else made, of 4 KiB pages, which is written to by whoever has
    /// it, and whose size is sealed.
    pub(crate) fn of_others(fd: OwnedFd) -> Result<Result<Self, UnfitFile>, KvmError> {
        let what = "looking at a file of memory";
        #[expect(clippy::useless_conversion, reason = "the type differs between C libraries")]
        let kind = i64::from(fstatfs(&fd).asked(what)?.f_type);
        if kind != TMPFS {
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

    /// Its size in bytes, whatever memory it takes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The pages that it is made of.
    pub(crate) fn pages(&self) -> PageSize {
        self.pages
    }

    /// Bytes of memory that it takes, as the kernel counts them.
    pub(crate) fn taken(&self) -> Result<u64, KvmError> {
        let status = fstat(&self.file).asked("looking at a file of memory")?;
        // Blocks are of 512 bytes, whatever the file system (stat(3type)).
        Ok(u64::try_from(status.st_blocks).unwrap_or(0) * 512)
    }

    /// Writes bytes.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), KvmError> {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        self.file.write_all_at(bytes, offset).asked("writing to a file of memory")
    }

    /// Copies bytes out.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), KvmError> {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        self.file.read_exact_at(bytes, offset).asked("reading a file of memory")
    }

    /// From here on nobody can write to the file, but through mappings that there are already.
    ///
    /// The seal that also rules those out (`F_SEAL_WRITE`) looks at every page, waits for all
    /// processors, and fails while KVM holds a page for a moment: it would take longer than the
    /// freeze. Whoever seals a file has its mapping, and drops it.
    pub(crate) fn seal(&self) -> Result<(), KvmError> {
        fcntl_add_seals(&self.file, SealFlags::FUTURE_WRITE).asked("sealing snapshot memory")
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A range of frames as a range of bytes.
pub(crate) fn bytes_of(frames: &std::ops::Range<u32>) -> std::ops::Range<usize> {
    frames.start as usize * FRAME_BYTES..frames.end as usize * FRAME_BYTES
}

/// A range of bytes as a range of frames.
pub(crate) fn frames_of(bytes: &std::ops::Range<usize>) -> std::ops::Range<u32> {
    let frame = |offset: usize| u32::try_from(offset / FRAME_BYTES).unwrap_or(u32::MAX);
    frame(bytes.start)..frame(bytes.end)
}
