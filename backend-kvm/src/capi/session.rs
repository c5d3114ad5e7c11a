//! Sessions: a VM's userfaultfd, served from a memory file.

#![expect(unsafe_code, reason = "C calls these functions, and passes pointers and descriptors")]

use super::failure::{Failure, Status, call};
use super::map::Map;
use super::{pointers, policy};
use crate::error::{Error, ErrorKind};
use crate::firecracker::Handshake;
use crate::memory::PageSize;
use crate::uffd;
use kaleidoscope_core::clone::{LocalSource, Stopped};
use std::ffi::c_char;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A piece of a guest's RAM in the address space of the process that opened the userfaultfd. All
/// three are in bytes, multiples of the page size.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Region {
    /// Address of its first byte in that process.
    pub address: u64,
    /// Length.
    pub bytes: u64,
    /// Where it begins in the RAM: guest-physical order, without the holes between.
    pub offset: u64,
}

/// What a session is made of. Set all of it to zero, then `size`, and what is not the default.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SessionOptions {
    /// `sizeof (kaleidoscope_session_options)`.
    pub size: usize,
    /// A map that was opened with its memory file. It may be freed before the session; several
    /// sessions may share one.
    pub map: *const Map,
    /// The name of a policy as for `kaleidoscope_policy_new`; null is `predicted`.
    pub policy: *const c_char,
    /// The regions that are registered with the userfaultfd: together all of the guest's RAM. Null
    /// if `firecracker` is given.
    pub regions: *const Region,
    /// Number of the regions.
    pub region_count: usize,
    /// The message that Firecracker sent with its userfaultfd, which describes the regions and the
    /// page size; or null.
    pub firecracker: *const u8,
    /// Length of that message in bytes.
    pub firecracker_bytes: usize,
    /// Bytes of a page of the VM's memory: 4096 (also if 0), or 2097152 for hugetlb memory. Must be
    /// 0 if `firecracker` is given.
    pub page_size: u64,
    /// Threads that answer faults; 0 is 1.
    pub threads: u32,
    /// The userfaultfd, on which UFFDIO_API and UFFDIO_REGISTER were called.
    pub userfaultfd: i32,
    /// A pidfd of the VM's process, whose exit ends the session; or -1: the session then ends when
    /// it is stopped, or when it fails to fill a page because the process has exited. 0 is refused:
    /// it is what a caller has forgotten to set.
    pub process: i32,
}

/// A userfaultfd that is being served, on threads of the library.
#[derive(Debug)]
pub struct Session {
    pub(super) inner: uffd::Session,
}

/// A second descriptor of the same file.
///
/// # Safety
/// The caller owns the descriptor if there is one of that number, and keeps it open meanwhile.
unsafe fn second(descriptor: RawFd, what: &str) -> Result<OwnedFd, Failure> {
    let what = format!("`{what}` ({descriptor})");
    if descriptor < 0 {
        return Err(Failure::argument(format_args!("{what} is no descriptor")));
    }
    // SAFETY: the call takes a number; where none is open of that number, it says so.
    let duplicate = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate < 0 {
        let error = std::io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EBADF) => {
                Err(Failure::argument(format_args!("{what} is no open descriptor")))
            }
            _ => Err(Error::caused_by(ErrorKind::Refused, what, error).into()),
        };
    }
    // SAFETY: the kernel opened it for the call above, so that nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// Whether a descriptor is a pidfd, as the kernel tells.
fn is_pidfd(descriptor: &OwnedFd) -> bool {
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().any(|line| line.starts_with("Pid:"))
}

/// Closes a descriptor that C has given up.
///
/// # Safety
/// The caller owned the descriptor, which is open, and has passed it on.
unsafe fn close(descriptor: RawFd) {
    // SAFETY: by this function's contract nothing else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
}

impl SessionOptions {
    /// # Safety
    /// The pointer is null, or to options that begin with their size.
    unsafe fn read<'a>(options: *const Self) -> Result<&'a Self, Failure> {
        // SAFETY: whatever the version of the caller's header, `size` is the first field, and by
        // this function's contract it is there.
        let size = *unsafe { pointers::borrow(options.cast::<usize>(), "options") }?;
        if size != size_of::<Self>() {
            return Err(Failure::argument(format_args!(
                "`options.size` is {size}, and this version's options have {} bytes",
                size_of::<Self>()
            )));
        }
        // SAFETY: all of the fields are there, as the size says.
        unsafe { pointers::borrow(options, "options") }
    }

    /// # Safety
    /// Pointers are null or to what the fields' documentation says. The caller owns the descriptors.
    unsafe fn start(&self) -> Result<uffd::Session, Failure> {
        // SAFETY: by this function's contract it is null or a map that is not freed yet.
        let map = unsafe { pointers::borrow(self.map, "options.map") }?;
        // SAFETY: by this function's contract it is null or a string.
        let name = unsafe { pointers::text(self.policy, "options.policy") }?;
        // SAFETY: by this function's contract there are so many regions.
        let regions =
            unsafe { pointers::items(self.regions, self.region_count, "options.regions") }?;
        let message = if self.firecracker.is_null() {
            None
        } else {
            let (message, len) = (self.firecracker, self.firecracker_bytes);
            // SAFETY: by this function's contract it has so many bytes.
            Some(unsafe { pointers::items(message, len, "options.firecracker") }?)
        };
        let image = map
            .image
            .as_ref()
            .ok_or_else(|| Failure::argument("`options.map` was opened without its memory file"))?;
        let policy = policy::named(name.unwrap_or("predicted"), &map.locality)?;
        let (regions, pages) = match message {
            None => {
                let own = |region: &Region| {
                    uffd::Region::at_offset(region.address, region.bytes, region.offset)
                };
                (regions.iter().map(own).collect(), page_size(self.page_size)?)
            }
            Some(_) if !regions.is_empty() || self.page_size != 0 => {
                return Err(Failure::argument(
                    "`options.firecracker` has the regions and the page size: give no others",
                ));
            }
            Some(message) => {
                let vm = Handshake::parse(message)?;
                vm.check_layout(map.locality.layout())?;
                (vm.regions().to_vec(), vm.page_size())
            }
        };
        let is_none = self.process == -1;
        if self.process == 0 || (!is_none && self.process == self.userfaultfd) {
            return Err(Failure::argument(format_args!(
                "`options.process` is {}, and must be a pidfd, or -1",
                self.process
            )));
        }
        // A session that cannot start keeps its descriptor open, so that the VM waits. The caller's
        // own stays the caller's.
        // SAFETY: by this function's contract the caller owns it.
        let userfaultfd = unsafe { second(self.userfaultfd, "options.userfaultfd") }?;
        let source = LocalSource::new(Arc::clone(image) as _);
        let mut session = uffd::Session::builder(Arc::clone(&map.locality), source)
            .userfaultfd(userfaultfd, regions)
            .policy(policy)
            .page_size(pages)
            .threads(usize::try_from(self.threads).unwrap_or(1).max(1));
        if self.process != -1 {
            // SAFETY: as above.
            let process = unsafe { second(self.process, "options.process") }?;
            if !is_pidfd(&process) {
                // Anything else that is readable would look like an exit.
                let why = format!("`options.process` ({}) is no pidfd", self.process);
                return Err(Failure::argument(why));
            }
            session = session.until_exit(process);
        }
        Ok(session.start()?)
    }
}

fn page_size(bytes: u64) -> Result<PageSize, Failure> {
    match bytes {
        0 | 4096 => Ok(PageSize::Small),
        0x20_0000 => Ok(PageSize::Huge),
        _ => Err(Failure::argument(format_args!(
            "`options.page_size` is {bytes}, and must be 4096 or 2097152"
        ))),
    }
}

/// Starts to serve a userfaultfd.
///
/// If the status is `KALEIDOSCOPE_STATUS_OK`, the userfaultfd and the pidfd belong to the library,
/// and may be closed already when the call returns. Otherwise they remain the caller's; end the VM
/// before the userfaultfd is closed, because missing pages then read as zeros.
///
/// # Safety
/// `options` and what it points to are valid during the call. The caller owns the descriptors.
/// `session` is where the result goes; free it with `kaleidoscope_session_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_session_start(
    options: *const SessionOptions,
    session: *mut *mut Session,
) -> Status {
    call(|| {
        // SAFETY: the caller promises that it is null or a place for a pointer.
        let session = unsafe { pointers::out(session, "session") }?;
        // SAFETY: the caller promises that it is null or options.
        let options = unsafe { SessionOptions::read(options) }?;
        // SAFETY: the caller promises that the pointers in it are what they have to be.
        let inner = unsafe { options.start() }?;
        // SAFETY: the caller owned it and passes it on; it is open, since it was duplicated.
        unsafe { close(options.userfaultfd) };
        if options.process != -1 {
            // SAFETY: as above.
            unsafe { close(options.process) };
        }
        pointers::give(session, Session { inner });
        Ok(())
    })
}

/// Waits until the VM has ended: `KALEIDOSCOPE_STATUS_OK`. `KALEIDOSCOPE_STATUS_STOPPED` if the
/// session was stopped before. `KALEIDOSCOPE_STATUS_FAILED` if pages cease to come: end the VM,
/// whose vCPUs wait for missing pages.
///
/// # Safety
/// `session` is from `kaleidoscope_session_start`, and is not freed during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_session_wait(session: *const Session) -> Status {
    call(|| {
        // SAFETY: the caller promises that it is null or a session that is not freed yet.
        let session = unsafe { pointers::borrow(session, "session") }?;
        session.inner.wait().map_err(|why| {
            let was_stopped = matches!(why, Stopped::Cancelled);
            let status = if was_stopped { Status::Stopped } else { Status::Failed };
            Failure::new(status, why)
        })
    })
}

/// Ends the session: calls of `kaleidoscope_session_wait` return. vCPUs that touch a missing page
/// wait from then on. Any thread may call it.
///
/// # Safety
/// `session` is from `kaleidoscope_session_start`, and is not freed during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_session_stop(session: *const Session) -> Status {
    call(|| {
        // SAFETY: the caller promises that it is null or a session that is not freed yet.
        let session = unsafe { pointers::borrow(session, "session") }?;
        session.inner.stop();
        Ok(())
    })
}

/// Stops a session and frees it. Null is allowed. If pages are missing and the VM still runs, the
/// library keeps the userfaultfd open, because missing pages would read as zeros: end the VM.
///
/// # Safety
/// `session` is null or from `kaleidoscope_session_start`, no other call uses it, and none will.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_session_free(session: *mut Session) {
    call(|| {
        // SAFETY: the caller promises that it is null, or a session that is freed here only.
        unsafe { pointers::free(session) };
        Ok(())
    });
}
