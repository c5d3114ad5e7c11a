//! userfaultfd: faults of a guest on memory that is not there, and the ways to fill it.
//!
//! The `userfaultfd` crate needs libclang to build; these few calls do not.

#![expect(unsafe_code, reason = "ioctls that write to guest memory")]

use super::Mapping;
use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMOVE, UFFD_PAGEFAULT_FLAG_WRITE, uffd_msg,
    uffdio_api, uffdio_copy, uffdio_range, uffdio_register, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{
    UFFDIO_API, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE, UFFDIO_ZEROPAGE,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// Bytes of a message.
const MESSAGE: usize = size_of::<uffd_msg>();

/// What a guest did to memory that is watched. Offsets are in the mapping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    /// It touched a page that is not there.
    Fault {
        /// Where, to the byte if the system says so.
        offset: usize,
        /// Whether to write.
        is_write: bool,
    },
    /// Bytes were given back.
    Removed(Range<usize>),
}

/// Watches a mapping, or a part of it.
#[derive(Debug)]
pub(crate) struct Userfault {
    fd: OwnedFd,
    mapping: Arc<Mapping>,
}

/// Calls an ioctl of a userfaultfd.
///
/// # Safety
/// `CODE` takes a `T`, and does nothing with the addresses in it that is not allowed.
unsafe fn call<const CODE: Opcode, T>(fd: BorrowedFd<'_>, value: &mut T) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the type.
    let request = unsafe { Updater::<CODE, T>::new(value) };
    // SAFETY: the caller vouches for what it does.
    unsafe { ioctl(fd, request) }
}

/// The call of `/dev/userfaultfd` that makes a userfaultfd (`USERFAULTFD_IOC_NEW`), with its flags.
struct New(u32);

// SAFETY: the call takes its argument by value, refers to no memory, and returns a new file
// descriptor.
unsafe impl Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xaa, 0)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> Result<OwnedFd, Errno> {
        // SAFETY: the call returned a file descriptor that nobody else knows of.
        Ok(unsafe { OwnedFd::from_raw_fd(output) })
    }
}

/// A userfaultfd: by the system call, which takes privileges, or by the device, which takes the
/// right to open it.
fn open() -> Result<OwnedFd, Errno> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: the file descriptor is its owner's, who only fills memory of mappings to which nobody
    // has references.
    let made = unsafe { userfaultfd(flags) };
    let Err(Errno::PERM) = made else { return made };
    let access = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/userfaultfd", access, Mode::empty());
    let device = device.map_err(|_| Errno::PERM)?;
    // SAFETY: as above.
    unsafe { ioctl(device, New(flags.bits())) }
}

impl Userfault {
    /// Nothing is watched yet. `features` are the `UFFD_FEATURE_` bits that are needed.
    ///
    /// # Errors
    /// [`Errno::PERM`] without the right to watch what the kernel touches, [`Errno::INVAL`] where a
    /// feature is missing.
    pub(crate) fn new(mapping: Arc<Mapping>, features: u64) -> Result<Self, Errno> {
        let fd = open()?;
        let mut api = uffdio_api { api: u64::from(UFFD_API), features, ioctls: 0 };
        // SAFETY: the type is the call's, which refers to no memory.
        unsafe { call::<UFFDIO_API, _>(fd.as_fd(), &mut api) }?;
        Ok(Self { fd, mapping })
    }

    fn range(&self, range: &Range<usize>) -> Result<uffdio_range, Errno> {
        if range.start > range.end || range.end > self.mapping.len() {
            return Err(Errno::INVAL);
        }
        let start = self.mapping.address() + range.start as u64;
        Ok(uffdio_range { start, len: range.len() as u64 })
    }

    /// Watches a range, in `mode` (`UFFDIO_REGISTER_MODE_` bits).
    pub(crate) fn register(&self, range: Range<usize>, mode: u32) -> Result<(), Errno> {
        let range = self.range(&range)?;
        let mut register = uffdio_register { range, mode: mode.into(), ioctls: 0 };
        // SAFETY: the type is the call's; the range lies in the mapping, which is kept.
        unsafe { call::<UFFDIO_REGISTER, _>(self.fd.as_fd(), &mut register) }
    }

    /// Watches a range no longer.
    pub(crate) fn unregister(&self, range: Range<usize>) -> Result<(), Errno> {
        let mut range = self.range(&range)?;
        // SAFETY: the type is the call's; the range lies in the mapping.
        unsafe { call::<UFFDIO_UNREGISTER, _>(self.fd.as_fd(), &mut range) }
    }

    /// Fills whole pages that are not there, and wakes who waits for them. Says how many bytes were
    /// filled when it could not be all of them.
    pub(crate) fn copy(&self, offset: usize, bytes: &[u8]) -> Result<(), (usize, Errno)> {
        let end = offset.checked_add(bytes.len()).ok_or((0, Errno::INVAL))?;
        let range = self.range(&(offset..end)).map_err(|error| (0, error))?;
        let src = bytes.as_ptr().addr() as u64;
        let mut copy = uffdio_copy { dst: range.start, src, len: range.len, mode: 0, copy: 0 };
        // SAFETY: the type is the call's; the source is `bytes`, which is exposed to nothing but
        // reading, and the target lies in the mapping, to which there are no references.
        let result = unsafe { call::<UFFDIO_COPY, _>(self.fd.as_fd(), &mut copy) };
        result.map_err(|error| (usize::try_from(copy.copy).unwrap_or(0), error))
    }

    /// Fills pages that are not there with zeros, and wakes who waits for them. Says how many bytes
    /// were filled when it could not be all of them.
    pub(crate) fn zero(&self, range: Range<usize>) -> Result<(), (usize, Errno)> {
        let range = self.range(&range).map_err(|error| (0, error))?;
        let mut zero = uffdio_zeropage { range, mode: 0, zeropage: 0 };
        // SAFETY: the type is the call's; the range lies in the mapping, to which there are no
        // references.
        let result = unsafe { call::<UFFDIO_ZEROPAGE, _>(self.fd.as_fd(), &mut zero) };
        result.map_err(|error| (usize::try_from(zero.zeropage).unwrap_or(0), error))
    }

    /// Has those who wait for pages of a range look again.
    pub(crate) fn wake(&self, range: Range<usize>) -> Result<(), Errno> {
        let mut range = self.range(&range)?;
        // SAFETY: the type is the call's, which changes no memory.
        unsafe { call::<UFFDIO_WAKE, _>(self.fd.as_fd(), &mut range) }
    }

    /// The next message, if there is one. Does not wait.
    pub(crate) fn read(&self) -> Result<Option<Message>, Errno> {
        loop {
            let mut bytes = [0u8; MESSAGE];
            match rustix::io::read(&self.fd, &mut bytes) {
                Ok(MESSAGE) => {}
                Ok(_) => return Err(Errno::IO),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            }
            if let Some(message) = self.decode(&bytes)? {
                return Ok(Some(message));
            }
        }
    }

    /// The message in these bytes (struct `uffd_msg`: the event at 0, its two numbers at 8 and 16);
    /// `None` for events of no interest.
    fn decode(&self, bytes: &[u8; MESSAGE]) -> Result<Option<Message>, Errno> {
        let number = |at: usize| {
            let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
            u64::from_le_bytes(*bytes.unwrap_or(&[0; 8]))
        };
        let offset = |address: u64| {
            let offset = address.checked_sub(self.mapping.address());
            offset.and_then(|offset| usize::try_from(offset).ok()).ok_or(Errno::RANGE)
        };
        match u32::from(bytes[0]) {
            UFFD_EVENT_PAGEFAULT => Ok(Some(Message::Fault {
                offset: offset(number(16))?,
                is_write: number(8) & u64::from(UFFD_PAGEFAULT_FLAG_WRITE) != 0,
            })),
            UFFD_EVENT_REMOVE => {
                Ok(Some(Message::Removed(offset(number(8))?..offset(number(16))?)))
            }
            _ => Ok(None),
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
