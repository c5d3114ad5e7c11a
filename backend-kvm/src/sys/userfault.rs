//! userfaultfd: faults on memory that is not resident, and the ioctls that fill it.
//!
//! A descriptor may have been opened by this process or by another one. It works on addresses of
//! the process that opened it, which need not be mapped here.
//!
//! The `userfaultfd` crate makes the calls. Our own are those that it lacks: the number of bytes
//! that UFFDIO_ZEROPAGE filled before it failed, and the system call where `/dev/userfaultfd` may
//! not be opened.

#![expect(unsafe_code, reason = "ioctls that fill guest memory")]

use linux_raw_sys::general::{UFFD_API, uffdio_api, uffdio_range, uffdio_zeropage};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_ZEROPAGE};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use userfaultfd::{Error, Event, FeatureFlags, ReadWrite, RegisterMode, Uffd, UffdBuilder};

/// What a process did to memory that a descriptor watches. Addresses are the process's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    /// A thread touched a page that is not resident, and waits.
    Fault {
        /// The address, to the byte where the descriptor has UFFD_FEATURE_EXACT_ADDRESS.
        address: u64,
        /// Whether it was a write.
        is_write: bool,
    },
    /// A range was given back (MADV_DONTNEED, MADV_REMOVE) or unmapped.
    Removed(Range<u64>),
    /// A range was moved (mremap), or the process forked: memory that this descriptor no longer
    /// describes.
    Rearranged(&'static str),
}

/// A userfaultfd.
#[derive(Debug)]
pub(crate) struct Descriptor(Uffd);

/// Calls an ioctl of a userfaultfd.
///
/// # Safety
/// `CODE` takes a `T`, and the addresses in it are only used as the caller may use them.
unsafe fn call<const CODE: Opcode, T>(fd: BorrowedFd<'_>, value: &mut T) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the type.
    let request = unsafe { Updater::<CODE, T>::new(value) };
    // SAFETY: the caller vouches for the addresses.
    unsafe { ioctl(fd, request) }
}

fn pointer<T>(address: u64) -> *mut T {
    // An address of another process, which is passed to the kernel and never dereferenced here.
    std::ptr::without_provenance_mut(usize::try_from(address).unwrap_or(usize::MAX))
}

/// The system's error in one of the crate's.
fn errno(error: &Error) -> Errno {
    match error {
        Error::CopyFailed(errno) | Error::ZeropageFailed(errno) | Error::SystemError(errno) => {
            Errno::from_raw_os_error(*errno as i32)
        }
        Error::PartiallyCopied(_) => Errno::AGAIN,
        Error::OpenDevUserfaultfd(error) => Errno::from_io_error(error).unwrap_or(Errno::IO),
        Error::UnsupportedIoctls(_) => Errno::NOTSUP,
        Error::IncompleteMsg { .. } | Error::ReadEof | Error::UnrecognizedEvent(_) => Errno::IO,
    }
}

/// Opens a userfaultfd by the system call, for where the device exists and may not be opened.
fn by_system_call(features: u64) -> Result<Uffd, Errno> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: the descriptor is owned by the value that is returned, which fills only memory that
    // was registered with it.
    let fd = unsafe { userfaultfd(flags) }?;
    let mut api = uffdio_api { api: u64::from(UFFD_API), features, ioctls: 0 };
    // SAFETY: UFFDIO_API takes this type, which has no address in it.
    unsafe { call::<UFFDIO_API, _>(fd.as_fd(), &mut api) }?;
    // SAFETY: the descriptor is a userfaultfd, and is given away.
    Ok(unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) })
}

impl Descriptor {
    /// A descriptor for memory of this process. `features` are the `UFFD_FEATURE_` bits that are
    /// needed.
    ///
    /// # Errors
    /// [`Errno::PERM`] without the right to handle the kernel's faults, [`Errno::INVAL`] where a
    /// feature is missing.
    pub(crate) fn open(features: u64) -> Result<Self, Errno> {
        let mut builder = UffdBuilder::new();
        builder.close_on_exec(true).non_blocking(true).user_mode_only(false);
        let made = builder.require_features(FeatureFlags::from_bits_retain(features)).create();
        match made {
            Ok(uffd) => Ok(Self(uffd)),
            Err(Error::OpenDevUserfaultfd(_)) => by_system_call(features).map(Self),
            Err(error) => Err(errno(&error)),
        }
    }

    /// Takes over a descriptor that was opened elsewhere, after its UFFDIO_API. It becomes
    /// non-blocking, for all processes that share it: the kernel refuses to poll one that blocks.
    ///
    /// # Errors
    /// [`Errno::INVAL`] for a descriptor that is no userfaultfd.
    pub(crate) fn adopt(fd: OwnedFd) -> Result<Self, Errno> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let target = std::fs::read_link(link);
        let target = target.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if target.as_os_str() != "anon_inode:[userfaultfd]" {
            return Err(Errno::INVAL);
        }
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        // SAFETY: the check above says that the descriptor is a userfaultfd; it is given away.
        Ok(Self(unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) }))
    }

    /// The `UFFD_FEATURE_` bits that the descriptor was opened with, as the kernel tells in
    /// `/proc/self/fdinfo` ("API: aa:FEATURES:SUPPORTED", hexadecimal); `None` when it does not.
    pub(crate) fn features(&self) -> Option<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = std::fs::read_to_string(path).ok()?;
        let api = text.lines().find_map(|line| line.strip_prefix("API:"))?;
        u64::from_str_radix(api.trim().split(':').nth(1)?, 16).ok()
    }

    fn register_as(&self, range: &Range<u64>, mode: RegisterMode) -> Result<(), Errno> {
        let registered = self.0.register_with_mode(pointer(range.start), len(range)?, mode);
        registered.map(drop).map_err(|error| errno(&error))
    }

    /// Reports faults on pages of a range that are not resident.
    pub(crate) fn register(&self, range: Range<u64>) -> Result<(), Errno> {
        self.register_as(&range, RegisterMode::MISSING)
    }

    /// Tracks writes to a range.
    pub(crate) fn register_writes(&self, range: Range<u64>) -> Result<(), Errno> {
        self.register_as(&range, RegisterMode::WRITE_PROTECT)
    }

    /// Leaves a range alone from here on.
    pub(crate) fn unregister(&self, range: Range<u64>) -> Result<(), Errno> {
        let done = self.0.unregister(pointer(range.start), len(&range)?);
        done.map_err(|error| errno(&error))
    }

    /// Fills whole pages that are not resident, and wakes the threads that wait for them. The error
    /// has the number of bytes that were filled before it.
    ///
    /// Fills only pages that are missing from registered ranges ([`Errno::EXIST`] otherwise), and
    /// that no thread can have read, because it would still wait: so no memory changes under a
    /// reference, in this process or in another one.
    pub(crate) fn copy(&self, address: u64, bytes: &[u8]) -> Result<(), (usize, Errno)> {
        let source = bytes.as_ptr().cast();
        // SAFETY: the source is `bytes`, which the kernel reads; why the target may be written is
        // said above.
        let copied = unsafe { self.0.copy(source, pointer(address), bytes.len(), true) };
        match copied {
            Ok(_) => Ok(()),
            // Where nothing was copied the crate casts the negative error to a number.
            Err(Error::PartiallyCopied(n)) if n < bytes.len() => Err((n, Errno::AGAIN)),
            Err(error) => Err((0, errno(&error))),
        }
    }

    /// Fills pages that are not resident with zeros, and wakes the threads that wait for them. The
    /// error has the number of bytes that were filled before it.
    pub(crate) fn zero(&self, range: Range<u64>) -> Result<(), (usize, Errno)> {
        let len = len(&range).map_err(|error| (0, error))? as u64;
        let range = uffdio_range { start: range.start, len };
        let mut zero = uffdio_zeropage { range, mode: 0, zeropage: 0 };
        // SAFETY: UFFDIO_ZEROPAGE takes this type; it fills what `copy` may fill.
        let result = unsafe { call::<UFFDIO_ZEROPAGE, _>(self.0.as_fd(), &mut zero) };
        result.map_err(|error| (usize::try_from(zero.zeropage).unwrap_or(0), error))
    }

    /// Has the threads that wait for pages of a range look again.
    pub(crate) fn wake(&self, range: Range<u64>) -> Result<(), Errno> {
        let woken = self.0.wake(pointer(range.start), len(&range)?);
        woken.map_err(|error| errno(&error))
    }

    /// The next message, if there is one. Never waits.
    pub(crate) fn read(&self) -> Result<Option<Message>, Errno> {
        let address = |pointer: *mut std::ffi::c_void| pointer.addr() as u64;
        loop {
            let event = match self.0.read_event() {
                Ok(event) => event,
                Err(error) if errno(&error) == Errno::INTR => continue,
                Err(error) => return Err(errno(&error)),
            };
            return Ok(event.map(|event| match event {
                Event::Pagefault { rw, addr, .. } => {
                    Message::Fault { address: address(addr), is_write: rw == ReadWrite::Write }
                }
                Event::Remove { start, end } | Event::Unmap { start, end } => {
                    Message::Removed(address(start)..address(end))
                }
                Event::Remap { .. } => Message::Rearranged("moved watched memory (mremap)"),
                Event::Fork { uffd } => {
                    // Closed, missing pages of the child would read as zeros.
                    std::mem::forget(uffd);
                    Message::Rearranged("forked with watched memory")
                }
            }));
        }
    }
}

fn len(range: &Range<u64>) -> Result<usize, Errno> {
    let len = range.end.checked_sub(range.start).ok_or(Errno::INVAL)?;
    usize::try_from(len).map_err(|_| Errno::INVAL)
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
