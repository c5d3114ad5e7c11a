//! What goes wrong between us, KVM and the system.

use crate::memory::StoreFileError;
use kaleidoscope_core::clone::hooks::HookError;
use rustix::io::Errno;
use thiserror::Error;

/// Why a machine could not be made, run, snapshot or cloned.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KvmError {
    /// There is no usable KVM here.
    #[error("KVM cannot be used ({0}); is /dev/kvm there, and may this user open it?")]
    NoKvm(Errno),
    /// KVM or the system refused something.
    #[error("{what}: {source}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The system's answer.
        source: Errno,
    },
    /// A guest needs something that this host does not have.
    #[error("this host's KVM lacks {0}")]
    Lacking(&'static str),
    /// Saved state is not what it should be.
    #[error("saved machine state: {0}")]
    State(String),
    /// A machine cannot be snapshotted as it is now.
    #[error("it cannot be snapshotted: {0}")]
    NotWhole(&'static str),
    /// An access outside the guest's RAM.
    #[error("guest-physical range {gpa:#x}..+{len:#x} is not RAM")]
    NotRam {
        /// First address.
        gpa: u64,
        /// Bytes.
        len: usize,
    },
    /// The guest has ended, or a vCPU of it.
    #[error("the guest has ended: {0}")]
    Ended(String),
    /// A hook around a freeze or a start failed.
    #[error("a hook failed: {0}")]
    Hook(#[from] HookError),
    /// A content store cannot be opened again.
    #[error("a content store's file: {0}")]
    StoreFile(#[from] StoreFileError),
    /// vCPUs did not stop in time.
    #[error("a vCPU did not stop within {0} ms")]
    Stuck(u128),
}

/// Says what was asked for when the system refuses.
pub(crate) trait Asked<T> {
    fn asked(self, what: &'static str) -> Result<T, KvmError>;
}

impl<T> Asked<T> for Result<T, Errno> {
    fn asked(self, what: &'static str) -> Result<T, KvmError> {
        self.map_err(|source| KvmError::Refused { what, source })
    }
}

impl<T> Asked<T> for Result<T, kvm_ioctls::Error> {
    fn asked(self, what: &'static str) -> Result<T, KvmError> {
        self.map_err(|error| KvmError::Refused {
            what,
            source: Errno::from_raw_os_error(error.errno()),
        })
    }
}

impl<T> Asked<T> for std::io::Result<T> {
    fn asked(self, what: &'static str) -> Result<T, KvmError> {
        self.map_err(|error| KvmError::Refused {
            what,
            source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })
    }
}
