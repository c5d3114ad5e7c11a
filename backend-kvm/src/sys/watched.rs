//! A mapping of this process whose faults or writes a userfaultfd reports.

use super::Mapping;
use super::userfault::Descriptor;
#[cfg(feature = "guest")]
use super::userfault::Message;
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// A userfaultfd and the mapping that it watches, which it keeps mapped. Ranges are bytes of the
/// mapping.
#[derive(Debug)]
pub(crate) struct Userfault {
    descriptor: Descriptor,
    mapping: Arc<Mapping>,
}

impl Userfault {
    /// A descriptor that watches nothing yet. `features` are the required `UFFD_FEATURE_` bits.
    ///
    /// # Errors
    /// As [`Descriptor::open`].
    pub(crate) fn new(mapping: Arc<Mapping>, features: u64) -> Result<Self, Errno> {
        Ok(Self { descriptor: Descriptor::open(features)?, mapping })
    }

    /// Addresses of a range that lies in the mapping.
    fn addresses(&self, range: &Range<usize>) -> Result<Range<u64>, Errno> {
        if range.start > range.end || range.end > self.mapping.len() {
            return Err(Errno::INVAL);
        }
        let start = self.mapping.address() + range.start as u64;
        Ok(start..start + range.len() as u64)
    }

    /// Reports faults on pages of a range that are not resident.
    pub(crate) fn register(&self, range: &Range<usize>) -> Result<(), Errno> {
        self.descriptor.register(self.addresses(range)?)
    }

    /// Tracks writes to a range.
    #[cfg(feature = "machine")]
    pub(crate) fn register_writes(&self, range: &Range<usize>) -> Result<(), Errno> {
        self.descriptor.register_writes(self.addresses(range)?)
    }

    /// As [`Descriptor::unregister`].
    #[cfg(feature = "machine")]
    pub(crate) fn unregister(&self, range: &Range<usize>) -> Result<(), Errno> {
        self.descriptor.unregister(self.addresses(range)?)
    }

    /// As [`Descriptor::copy`].
    pub(crate) fn copy(&self, offset: usize, bytes: &[u8]) -> Result<(), (usize, Errno)> {
        let end = offset.checked_add(bytes.len()).ok_or((0, Errno::INVAL))?;
        let addresses = self.addresses(&(offset..end)).map_err(|error| (0, error))?;
        self.descriptor.copy(addresses.start, bytes)
    }

    /// The offset of the next fault in the mapping, if there is one. Never waits.
    #[cfg(feature = "guest")]
    pub(crate) fn read_fault(&self) -> Result<Option<usize>, Errno> {
        loop {
            match self.descriptor.read()? {
                None => return Ok(None),
                Some(Message::Fault { address, .. }) => {
                    let offset = address.checked_sub(self.mapping.address());
                    return offset
                        .and_then(|at| usize::try_from(at).ok())
                        .ok_or(Errno::RANGE)
                        .map(Some);
                }
                Some(Message::Removed(_) | Message::Forked(_) | Message::Unserved(_)) => {}
            }
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
