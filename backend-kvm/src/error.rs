//! Errors of this crate.

use crate::memory::StoreFileError;
use kaleidoscope_core::clone::hooks::HookError;
use rustix::io::Errno;
use std::borrow::Cow;
use std::fmt;
use std::io;

/// Classes of failures, by what a program can do about them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// This process may not use KVM or userfaultfd, or this host does not have it.
    Unavailable,
    /// The kernel, KVM or the format of a file lacks a feature, or is of another version.
    Unsupported,
    /// The system refused a request, out of memory for example.
    /// [`raw_os_error`](Error::raw_os_error) has its answer.
    Refused,
    /// An argument, or bytes that were passed in, are not what they have to be.
    InvalidInput,
    /// The request is not possible in the state that the object is in.
    InvalidState,
    /// Pages of the memory are not resident yet; try again when they are.
    NotComplete,
    /// A range or index lies outside the guest's RAM, or outside an image.
    OutOfRange,
    /// Another process uses the file.
    InUse,
    /// The guest has ended, or one of its vCPUs has. No later request succeeds.
    Ended,
    /// A hook before or after a freeze or a start failed.
    Hook,
    /// A vCPU did not stop in time, and the request may be repeated; or another program did not
    /// answer in time.
    Timeout,
}

/// Why a request failed: its [kind](Self::kind), what failed, and the cause.
///
/// `Display` writes what failed and the causes. [`source`](std::error::Error::source) is a
/// [`std::io::Error`] where the system refused a request.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error that says what failed.
    pub(crate) fn new(kind: ErrorKind, what: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    /// An error with the one that led to it.
    pub(crate) fn caused_by(
        kind: ErrorKind,
        what: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, what: what.into(), source: Some(source.into()) }
    }

    /// An error of kind [`ErrorKind::InvalidInput`].
    pub(crate) fn input(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidInput, what)
    }

    /// An error of kind [`ErrorKind::InvalidState`].
    pub(crate) fn state(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidState, what)
    }

    /// An error of kind [`ErrorKind::Ended`].
    #[cfg(feature = "machine")]
    pub(crate) fn ended(how: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Ended, format!("the guest has ended: {how}"))
    }

    /// The system's answer to a request.
    fn refused(kind: ErrorKind, what: impl Into<Cow<'static, str>>, errno: Errno) -> Self {
        Self::caused_by(kind, what, io::Error::from(errno))
    }

    /// The class of the failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The system's error number (`errno`), where the system refused a request.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        let source = self.source.as_ref()?;
        source.downcast_ref::<io::Error>()?.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn std::error::Error + 'static))
    }
}

impl From<HookError> for Error {
    fn from(error: HookError) -> Self {
        Self::caused_by(ErrorKind::Hook, "a hook failed", error)
    }
}

impl From<StoreFileError> for Error {
    fn from(error: StoreFileError) -> Self {
        let kind = match error {
            StoreFileError::InUse => ErrorKind::InUse,
            StoreFileError::Version(_) | StoreFileError::Flags(_) => ErrorKind::Unsupported,
            StoreFileError::Unfit(_) | StoreFileError::Magic | StoreFileError::Size { .. } => {
                ErrorKind::InvalidInput
            }
        };
        Self::caused_by(kind, "a content store's file", error)
    }
}

/// The answers of the system that this crate deals with.
pub(crate) trait Answer {
    fn errno(&self) -> Errno;
}

impl Answer for Errno {
    fn errno(&self) -> Errno {
        *self
    }
}

#[cfg(feature = "machine")]
impl Answer for kvm_ioctls::Error {
    fn errno(&self) -> Errno {
        Errno::from_raw_os_error(kvm_ioctls::Error::errno(*self))
    }
}

impl Answer for io::Error {
    fn errno(&self) -> Errno {
        Errno::from_io_error(self).unwrap_or(Errno::IO)
    }
}

/// Says what was asked for when the system refuses.
pub(crate) trait Asked<T> {
    /// Of a request that every supported system knows.
    fn asked(self, what: impl Into<Cow<'static, str>>) -> Result<T, Error>;

    /// Of a request that needs a right or a device.
    fn permitted(self, what: impl Into<Cow<'static, str>>) -> Result<T, Error>;

    /// Of a request that older kernels do not know, or that needs a right.
    #[cfg(feature = "machine")]
    fn supported(self, what: impl Into<Cow<'static, str>>) -> Result<T, Error>;
}

impl<T, A: Answer> Asked<T> for Result<T, A> {
    fn asked(self, what: impl Into<Cow<'static, str>>) -> Result<T, Error> {
        self.map_err(|answer| Error::refused(ErrorKind::Refused, what, answer.errno()))
    }

    fn permitted(self, what: impl Into<Cow<'static, str>>) -> Result<T, Error> {
        self.map_err(|answer| {
            let errno = answer.errno();
            let lacking =
                [Errno::PERM, Errno::ACCESS, Errno::NOENT, Errno::NODEV, Errno::NXIO, Errno::NOSYS];
            let is_there = !lacking.contains(&errno);
            let kind = if is_there { ErrorKind::Refused } else { ErrorKind::Unavailable };
            Error::refused(kind, what, errno)
        })
    }

    #[cfg(feature = "machine")]
    fn supported(self, what: impl Into<Cow<'static, str>>) -> Result<T, Error> {
        match self.as_ref().map_err(Answer::errno) {
            Err(errno @ (Errno::INVAL | Errno::NOTTY | Errno::OPNOTSUPP)) => {
                Err(Error::refused(ErrorKind::Unsupported, what, errno))
            }
            Ok(_) | Err(_) => self.permitted(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn an_error_says_what_failed_and_why() {
        let refused = |errno: Errno| Err::<(), _>(errno);
        let error = refused(Errno::NOMEM).asked("mapping memory").unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Refused, Some(12)));
        assert_eq!(error.to_string(), "mapping memory: Cannot allocate memory (os error 12)");
        assert!(error.source().unwrap().is::<io::Error>());
        let kinds = [Errno::PERM, Errno::NOENT, Errno::NOSYS, Errno::INVAL, Errno::NOMEM]
            .map(|errno| refused(errno).supported("x").unwrap_err().kind());
        let none = ErrorKind::Unavailable;
        assert_eq!(kinds, [none, none, none, ErrorKind::Unsupported, ErrorKind::Refused]);
        let hook = Error::from(HookError::new("not now"));
        assert_eq!(
            (hook.kind(), hook.to_string().as_str()),
            (ErrorKind::Hook, "a hook failed: not now")
        );
        assert_eq!(hook.raw_os_error(), None);
    }
}
