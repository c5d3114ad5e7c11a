//! Counters of a session.

#![expect(unsafe_code, reason = "C calls this function and passes pointers")]

use super::failure::{Failure, Status, call};
use super::pointers;
use super::session::Session;
use kaleidoscope_core::clone;

/// Counters of a session: frames of 4096 bytes, unless a field states another unit. They are read
/// one after another, so that they may disagree by what happened meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Statistics {
    /// Number of the guest's frames.
    pub frames: u64,
    /// Frames in the VM's memory now.
    pub resident: u64,
    /// Touches that waited for a frame that had not been requested.
    pub faults: u64,
    /// Touches that waited for a frame in flight.
    pub late: u64,
    /// Touches that were answered with zeros.
    pub zero_faults: u64,
    /// Frames fetched because they were touched.
    pub fetched: u64,
    /// Frames fetched because the policy planned them.
    pub prefetched: u64,
    /// Frames filled with zeros ahead of any touch.
    pub zeroed_ahead: u64,
    /// Bytes of page contents transferred. Pages of zeros count nothing.
    pub transferred_bytes: u64,
    /// Nanoseconds that touches have waited, summed over all vCPUs.
    pub stalled_ns: u64,
}

impl From<&clone::Statistics> for Statistics {
    fn from(statistics: &clone::Statistics) -> Self {
        let total = statistics.total();
        Self {
            frames: u64::from(statistics.frames),
            resident: total.resident,
            faults: total.faults,
            late: total.late,
            zero_faults: total.zero_faults,
            fetched: total.fetched,
            prefetched: total.prefetched,
            zeroed_ahead: total.zeroed_ahead,
            transferred_bytes: statistics.bytes(),
            stalled_ns: total.stalled_ns,
        }
    }
}

/// A session's counters, at any time. `size` is `sizeof (kaleidoscope_statistics)`.
///
/// # Safety
/// `session` is from `kaleidoscope_session_start`, and is not freed during the call; `statistics`
/// is where the result goes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_session_statistics(
    session: *const Session,
    statistics: *mut Statistics,
    size: usize,
) -> Status {
    call(|| {
        // SAFETY: the caller promises that it is null or a session that is not freed yet.
        let session = unsafe { pointers::borrow(session, "session") }?;
        if size != size_of::<Statistics>() {
            return Err(Failure::argument(format_args!(
                "`size` is {size}, and this version's statistics have {} bytes",
                size_of::<Statistics>()
            )));
        }
        // SAFETY: the caller promises that it is null or a place for the result, whose size agrees.
        let out = unsafe { pointers::out(statistics, "statistics") }?;
        out.write(Statistics::from(&session.inner.engine().statistics()));
        Ok(())
    })
}
