//! Guest memory of a stand-in: mapped, watched by a userfaultfd, and read.

#![expect(unsafe_code, reason = "the VM's process maps memory and reads it")]

use super::{PAGE, Slot};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::FallocateFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::ffi::c_void;
use userfaultfd::{FeatureFlags, RegisterMode, Uffd, UffdBuilder};

/// UFFD_FEATURE_MINOR_SHMEM.
const MINOR_SHMEM: u64 = 1 << 10;

/// A slot's memory.
pub struct Ram {
    pub gpa: u64,
    pub len: usize,
    start: usize,
    file: Option<(OwnedFd, u64)>,
}

impl Ram {
    /// Maps a file from the slot's offset on, or memory without a file.
    pub fn map((_, gpa, size, offset): Slot, file: Option<OwnedFd>) -> Self {
        let len = size as usize;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let start = match &file {
            // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
            Some(file) => unsafe {
                mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file.as_fd(), offset)
            },
            // SAFETY: as above.
            None => unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE) },
        };
        let start = start.unwrap().expose_provenance();
        Self { gpa, len, start, file: file.map(|file| (file, offset)) }
    }

    fn pointer(&self, offset: usize) -> *mut c_void {
        assert!(offset < self.len);
        std::ptr::with_exposed_provenance_mut(self.start + offset)
    }

    /// The offset of an address in it.
    pub fn offset_of(&self, address: usize) -> Option<usize> {
        let offset = address.checked_sub(self.start)?;
        (offset < self.len).then_some(offset / PAGE * PAGE)
    }

    /// What the guest reads in the page at an offset.
    pub fn read(&self, offset: usize) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let start = self.pointer(offset).cast::<[u8; 8]>();
        for (n, word) in page.as_chunks_mut().0.iter_mut().enumerate() {
            // SAFETY: the word lies in a mapping of this process, which nothing else refers to.
            *word = unsafe { start.wrapping_add(n).read_volatile() };
        }
        page
    }

    /// The guest writes a byte.
    pub fn write(&self, offset: usize, byte: u8) {
        // SAFETY: the byte lies in a mapping of this process, which nothing else refers to.
        unsafe { self.pointer(offset).cast::<u8>().write_volatile(byte) };
    }

    /// Gives all pages back to the host, as a balloon does.
    pub fn give_back(&self) {
        let (file, offset) = self.file.as_ref().unwrap();
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, how, *offset, self.len as u64).unwrap();
    }
}

/// Watches all memory: faults on missing pages, and, if `minor`, on pages that are in a file and not
/// mapped.
pub fn watch(ram: &[Ram], minor: bool) -> Uffd {
    let is_shared = ram.iter().any(|ram| ram.file.is_some());
    let mut features = FeatureFlags::empty();
    features.set(FeatureFlags::MISSING_SHMEM, is_shared);
    features.set(FeatureFlags::from_bits_retain(MINOR_SHMEM), minor);
    let mut builder = UffdBuilder::new();
    builder.user_mode_only(false).non_blocking(true).require_features(features);
    let uffd = builder.create().unwrap();
    let mut mode = RegisterMode::MISSING;
    mode.set(RegisterMode::MINOR, minor);
    for ram in ram {
        uffd.register_with_mode(ram.pointer(0), ram.len, mode).unwrap();
    }
    uffd
}

/// How a fault is resolved after its answer: as 53.0 does, as later versions do, or with the page
/// that came in the answer.
pub fn resolve(uffd: &Uffd, ram: &Ram, offset: usize, minor: bool, page: Option<&[u8]>) {
    let at = ram.pointer(offset);
    let wake = || uffd.wake(at, PAGE).unwrap();
    match page {
        // SAFETY: the page is of 4 KiB, and so is the missing page.
        Some(page) => match unsafe { uffd.copy(page.as_ptr().cast(), at, PAGE, true) } {
            Ok(_) => {}
            Err(userfaultfd::Error::CopyFailed(error)) if error as i32 == 17 => wake(),
            Err(error) => panic!("{error}"),
        },
        None if minor => match uffd.r#continue(at, PAGE, true) {
            Ok(_) => {}
            Err(userfaultfd::Error::SystemError(error)) if error as i32 == 17 => wake(),
            Err(error) => panic!("{error}"),
        },
        None => wake(),
    }
}
