//! userfaultfd: faults on memory that is not resident, and the ioctls that fill it.
//!
//! A descriptor may have been opened by this process or by another one. It works on addresses of
//! the process that opened it, which need not be mapped here. Another process may be hostile: it
//! shares the descriptor's file status flags, and registers any of its own memory with it. It
//! cannot make a call here wait ([`Descriptor::read`]), and its messages are only numbers, which
//! the caller has to look up in the regions that it knows.
//!
//! # Which memory a descriptor may change
//! UFFDIO_COPY and UFFDIO_ZEROPAGE change pages of one process, the one that opened the descriptor,
//! and only pages that are missing from a range that is registered with it; the kernel returns
//! EEXIST for pages that are there, and ENOENT for ranges that are not registered. A thread that
//! touches a missing page of such a range waits for the page. So no thread has read a byte that
//! these calls change, and they are sound for any address. Ranges of this process are registered
//! in three places, all with parts of a [`Mapping`](super::Mapping): `Shard::own`,
//! `UserfaultMemory::of_files` and `Userfault::register`. A [`Mapping`](super::Mapping) hands out no
//! reference to its bytes.
//!
//! The `userfaultfd` crate makes most of the calls. Those made here are the ones that it lacks: the
//! number of bytes that UFFDIO_ZEROPAGE filled before it failed, reading without waiting, and the
//! system call where `/dev/userfaultfd` may not be opened.

#![expect(unsafe_code, reason = "ioctls that fill guest memory")]

use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_FORK, UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMAP, UFFD_EVENT_REMOVE,
    UFFD_EVENT_UNMAP, UFFD_PAGEFAULT_FLAG_MINOR, UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WRITE,
    uffd_msg, uffdio_api, uffdio_range, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_ZEROPAGE};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use userfaultfd::{Error, FeatureFlags, RegisterMode, Uffd, UffdBuilder};

/// What a process did to memory that a descriptor watches. Addresses are the process's, and may be
/// outside of the ranges that the caller knows.
#[derive(Debug)]
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
    /// The process forked; this descriptor watches the memory of the child.
    Forked(OwnedFd),
    /// The process did something that cannot be served.
    Unserved(&'static str),
}

/// A userfaultfd.
#[derive(Debug)]
pub(crate) struct Descriptor(Uffd);

/// Calls an ioctl of a userfaultfd.
///
/// # Safety
/// `CODE` takes a pointer to a `T`, and the call changes no memory that a reference in this process
/// refers to, except through `value`.
unsafe fn call<const CODE: Opcode, T>(fd: BorrowedFd<'_>, value: &mut T) -> Result<(), Errno> {
    // SAFETY: the caller promises that `CODE` takes a `T`.
    let request = unsafe { Updater::<CODE, T>::new(value) };
    // SAFETY: the caller promises that the call changes no referenced memory but `value`, which
    // `request` borrows.
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

/// Opens a userfaultfd by the system call, for hosts where the device exists and may not be opened.
fn by_system_call(features: u64) -> Result<Uffd, Errno> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: a new userfaultfd watches no memory. What its calls may change is stated in the
    // module's documentation.
    let fd = unsafe { userfaultfd(flags) }?;
    let mut api = uffdio_api { api: u64::from(UFFD_API), features, ioctls: 0 };
    // SAFETY: UFFDIO_API takes a `uffdio_api`, which contains no address.
    unsafe { call::<UFFDIO_API, _>(fd.as_fd(), &mut api) }?;
    // SAFETY: `into_raw_fd` gives up the ownership of an open descriptor, a userfaultfd.
    Ok(unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) })
}

/// Bytes of a message, and its words of 8 bytes.
const MESSAGE: usize = size_of::<uffd_msg>();
pub(crate) const MESSAGE_WORDS: usize = MESSAGE / 8;
const _: () = assert!(MESSAGE == 32);

impl Descriptor {
    /// A descriptor for memory of this process. `features` are the required `UFFD_FEATURE_` bits.
    ///
    /// # Errors
    /// [`Errno::PERM`] without the right to handle faults of the kernel, [`Errno::INVAL`] where a
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

    /// Takes over a descriptor that was opened elsewhere. It becomes non-blocking, for all
    /// processes that share it: the kernel refuses to poll one that blocks.
    ///
    /// # Errors
    /// The descriptor, and [`Errno::INVAL`] when it is no userfaultfd.
    pub(crate) fn adopt(fd: OwnedFd) -> Result<Self, (OwnedFd, Errno)> {
        let checked = || {
            // The kernel names open files that have no path. All paths begin with a slash, so that
            // no file can have this name.
            let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            let target =
                target.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            if target.as_os_str() != "anon_inode:[userfaultfd]" {
                return Err(Errno::INVAL);
            }
            fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
            fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)
        };
        if let Err(error) = checked() {
            return Err((fd, error));
        }
        // SAFETY: `into_raw_fd` gives up the ownership of an open descriptor; the link that was
        // read above says that it is a userfaultfd.
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
    #[cfg(feature = "machine")]
    pub(crate) fn register_writes(&self, range: Range<u64>) -> Result<(), Errno> {
        self.register_as(&range, RegisterMode::WRITE_PROTECT)
    }

    /// Stops reporting faults on a range, and wakes the threads that wait for its pages.
    pub(crate) fn unregister(&self, range: Range<u64>) -> Result<(), Errno> {
        let done = self.0.unregister(pointer(range.start), len(&range)?);
        done.map_err(|error| errno(&error))
    }

    /// Fills whole pages that are not resident, and wakes the threads that wait for them. The error
    /// has the number of bytes that were filled before it; [`Errno::EXIST`] says that a page is
    /// there, [`Errno::AGAIN`] that messages have to be read first.
    pub(crate) fn copy(&self, address: u64, bytes: &[u8]) -> Result<(), (usize, Errno)> {
        let source = bytes.as_ptr().cast();
        // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`. It changes only pages that no
        // thread has read, at whatever address (module documentation).
        let copied = unsafe { self.0.copy(source, pointer(address), bytes.len(), true) };
        match copied {
            Ok(_) => Ok(()),
            // Where nothing was copied the crate casts the negative error to a number.
            Err(Error::PartiallyCopied(n)) if n < bytes.len() => Err((n, Errno::AGAIN)),
            Err(error) => Err((0, errno(&error))),
        }
    }

    /// Fills pages that are not resident with zeros, and wakes the threads that wait for them. The
    /// error is as for [`copy`](Self::copy).
    pub(crate) fn zero(&self, range: Range<u64>) -> Result<(), (usize, Errno)> {
        let len = len(&range).map_err(|error| (0, error))? as u64;
        let range = uffdio_range { start: range.start, len };
        let mut zero = uffdio_zeropage { range, mode: 0, zeropage: 0 };
        // SAFETY: UFFDIO_ZEROPAGE takes a `uffdio_zeropage`. It changes only pages that no thread
        // has read, at whatever address (module documentation).
        let result = unsafe { call::<UFFDIO_ZEROPAGE, _>(self.0.as_fd(), &mut zero) };
        result.map_err(|error| (usize::try_from(zero.zeropage).unwrap_or(0), error))
    }

    /// Makes the threads that wait for pages of a range retry their access.
    pub(crate) fn wake(&self, range: Range<u64>) -> Result<(), Errno> {
        let woken = self.0.wake(pointer(range.start), len(&range)?);
        woken.map_err(|error| errno(&error))
    }

    /// The next message, if there is one. Never waits, even if another process that shares the
    /// descriptor makes it blocking.
    ///
    /// # Errors
    /// [`Errno::INVAL`] before UFFDIO_API was called, [`Errno::IO`] for a message that the kernel
    /// cut.
    pub(crate) fn read(&self) -> Result<Option<Message>, Errno> {
        let slot: [AtomicU64; MESSAGE_WORDS] = Default::default();
        let message = self.read_into(&slot)?;
        let [head, first, ..] = slot.map(AtomicU64::into_inner);
        if message.is_none() || u32::from(head.to_le_bytes()[0]) != UFFD_EVENT_FORK {
            return Ok(message);
        }
        let [a, b, c, d, ..] = first.to_le_bytes();
        // SAFETY: the kernel opened this descriptor in this process for the reader of the message,
        // which the call above has just received; no other thread or process has seen `slot`. So
        // nothing else owns it.
        let uffd = unsafe { OwnedFd::from_raw_fd(RawFd::from_le_bytes([a, b, c, d])) };
        Ok(Some(Message::Forked(uffd)))
    }

    /// As [`read`](Self::read). The message is in `slot`, too, from the moment at which the kernel
    /// hands it out: in memory that outlives this process it survives the process's death. As others
    /// may write there, a descriptor in a message is not taken: that of a child of the VM's process
    /// stays open, so that the child waits.
    pub(crate) fn read_into(
        &self,
        slot: &[AtomicU64; MESSAGE_WORDS],
    ) -> Result<Option<Message>, Errno> {
        loop {
            return match self.read_now(slot) {
                Ok(MESSAGE) => {
                    let words = slot.each_ref().map(|word| word.load(Ordering::Acquire));
                    message(&words).map(Some).ok_or(Errno::IO)
                }
                Ok(_) => Err(Errno::IO),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error),
            };
        }
    }

    fn read_now(&self, slot: &[AtomicU64; MESSAGE_WORDS]) -> Result<usize, Errno> {
        let start = slot.as_ptr().cast_mut().cast::<libc::c_void>();
        let slices = libc::iovec { iov_base: start, iov_len: MESSAGE };
        let fd = self.0.as_raw_fd();
        // An offset of -1 stands for none; its upper half is the fifth argument.
        let none: libc::c_long = -1;
        // SAFETY: the kernel writes at most `MESSAGE` bytes to `slot`, whose words are atomic: a
        // shared reference allows writes to them.
        let read = unsafe {
            libc::syscall(libc::SYS_preadv2, fd, &raw const slices, 1, none, none, libc::RWF_NOWAIT)
        };
        match answer(read) {
            Err(Errno::OPNOTSUPP) => {}
            done => return done,
        }
        // Linux before 6.10 knows only the flag that all processes share.
        if !fcntl_getfl(self)?.contains(OFlags::NONBLOCK) {
            return Err(Errno::PERM);
        }
        // SAFETY: as above.
        answer(unsafe { libc::syscall(libc::SYS_read, fd, start, MESSAGE) })
    }
}

/// A system call's answer: a number of bytes, or an error.
fn answer(result: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}

/// The meaning of a message: an event's number in the first byte, and its arguments from the eighth
/// on (`struct uffd_msg`). `None` for zeros, which stand for no message.
pub(crate) fn message(words: &[u64; MESSAGE_WORDS]) -> Option<Message> {
    let [head, first, second, _] = *words;
    let is_set = |flag: u32| first & u64::from(flag) != 0;
    Some(match u32::from(head.to_le_bytes()[0]) {
        0 => return None,
        UFFD_EVENT_PAGEFAULT if is_set(UFFD_PAGEFAULT_FLAG_WP) => {
            Message::Unserved("protected memory against writes through this descriptor")
        }
        UFFD_EVENT_PAGEFAULT if is_set(UFFD_PAGEFAULT_FLAG_MINOR) => {
            Message::Unserved("registered memory for minor faults")
        }
        UFFD_EVENT_PAGEFAULT => {
            Message::Fault { address: second, is_write: is_set(UFFD_PAGEFAULT_FLAG_WRITE) }
        }
        UFFD_EVENT_REMOVE | UFFD_EVENT_UNMAP => Message::Removed(first..second),
        // The descriptor in it is that of the process that read the message.
        UFFD_EVENT_FORK => Message::Unserved("forked"),
        UFFD_EVENT_REMAP => Message::Unserved("moved watched memory (mremap)"),
        _ => Message::Unserved("did what this version does not know"),
    })
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
