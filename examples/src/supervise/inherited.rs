//! Descriptors that a service manager passes to a process that it starts.

#![expect(unsafe_code, reason = "takes descriptors by their numbers")]

use crate::failure::Failure;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The descriptors of `LISTEN_FDS` and their names. Nothing the second time.
pub(super) fn take() -> Result<Vec<(String, OwnedFd)>, Failure> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Vec::new());
    }
    let failed = |error| Failure::new(format_args!("the passed descriptors (LISTEN_FDS): {error}"));
    // Without it, what there is was passed to another process.
    if std::env::var("LISTEN_PID").ok() != Some(std::process::id().to_string()) {
        return Ok(Vec::new());
    }
    if matches!(std::env::var("LISTEN_FDS").as_deref(), Err(_) | Ok("0")) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names().map_err(failed)?;
    // SAFETY: `LISTEN_PID` names this process, so that whatever executed it has opened the
    // descriptors for it (sd_listen_fds(3)); the call above failed for one that is not open. They
    // are taken once.
    Ok(passed.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}
