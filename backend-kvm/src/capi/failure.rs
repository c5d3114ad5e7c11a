//! Statuses, and the message of a thread's last failure.

#![expect(unsafe_code, reason = "a function that C calls has an unmangled name")]

use crate::error::{Error, ErrorKind};
use kaleidoscope_core::service;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::fmt::Display;

/// What a call returns. The values are stable; later versions may add statuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Status {
    /// The call succeeded.
    Ok = 0,
    /// An argument is null, too long, unknown, or not what it has to be.
    InvalidArgument = 1,
    /// The guest has no RAM at this frame.
    NoSuchFrame = 2,
    /// A file cannot be read, or is not a manifest or a memory file.
    Unreadable = 3,
    /// The manifest was made from another memory file.
    Mismatch = 4,
    /// This process may not use userfaultfd, or this host does not have it.
    Unavailable = 5,
    /// The kernel lacks a feature.
    Unsupported = 6,
    /// The system refused a request, out of memory for example.
    Refused = 7,
    /// The call is not possible in the state that the object is in.
    InvalidState = 8,
    /// The session was stopped before the VM ended.
    Stopped = 9,
    /// Pages cease to come: end the VM, whose vCPUs wait for missing pages.
    Failed = 10,
    /// A defect of the library. Free the object, and end the VM of a session.
    Panicked = 11,
}

/// A status that is not [`Status::Ok`], and what failed.
#[derive(Debug)]
pub(super) struct Failure {
    status: Status,
    message: String,
}

impl Failure {
    pub(super) fn new(status: Status, message: impl Display) -> Self {
        Self { status, message: message.to_string() }
    }

    pub(super) fn argument(message: impl Display) -> Self {
        Self::new(Status::InvalidArgument, message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::OutOfRange => Status::InvalidArgument,
            ErrorKind::Unavailable => Status::Unavailable,
            ErrorKind::Unsupported => Status::Unsupported,
            ErrorKind::Refused | ErrorKind::Hook | ErrorKind::Timeout => Status::Refused,
            ErrorKind::InvalidState
            | ErrorKind::NotComplete
            | ErrorKind::InUse
            | ErrorKind::Ended => Status::InvalidState,
        };
        Self::new(status, error)
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

fn remember(message: String) {
    let bytes: Vec<u8> = message.into_bytes().into_iter().filter(|byte| *byte != 0).collect();
    let message = CString::new(bytes).unwrap_or_default();
    // A thread that is ending may have no message any more.
    let _ = LAST.try_with(|last| last.replace(message));
}

/// Runs the body of a call: a failure and a panic become a status and a message.
pub(super) fn call(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    let failure = match service::contained("a call of the library", body) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(panicked) => Failure::new(Status::Panicked, panicked),
    };
    remember(failure.message);
    failure.status
}

/// The message of the calling thread's last failed call: UTF-8, in English, for display. Never
/// null; empty if no call of this thread has failed. Valid until this thread's next failed call or
/// its end.
#[unsafe(no_mangle)]
pub extern "C" fn kaleidoscope_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        LAST.with(|last| last.borrow().to_str().unwrap().to_owned())
    }

    #[test]
    fn a_panic_becomes_a_status() {
        assert_eq!(call(|| panic!("on \0purpose")), Status::Panicked);
        assert!(last().contains("on purpose"), "{}", last());
        // Success leaves the message.
        assert_eq!(call(|| Ok(())), Status::Ok);
        assert!(last().contains("on purpose"), "{}", last());
        assert_eq!(call(|| Err(Failure::argument("no"))), Status::InvalidArgument);
        assert_eq!(last(), "no");
        // Each thread has its own.
        assert_eq!(std::thread::spawn(last).join().unwrap(), "");
    }
}
