//! Why a command could not do its job, and what to do about it.

use crate::cli::exit_status;
use rustix::io::Errno;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Ends a command: a cause on one line and, where there is one, a hint of what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    cause: String,
    hint: Option<String>,
    kind: Kind,
}

/// What a failure says of the command's work.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Kind {
    /// The work could not be done.
    #[default]
    Error,
    /// The work was a check, and found something wrong.
    Finding,
}

impl Failure {
    /// A failure without a hint.
    pub(crate) fn new(cause: impl fmt::Display) -> Self {
        Self { cause: cause.to_string(), hint: None, kind: Kind::Error }
    }

    /// A failure to read or write a file.
    pub(crate) fn at(path: &Path, cause: impl fmt::Display) -> Self {
        Self::new(format_args!("{}: {cause}", path.display()))
    }

    /// A failure whose reason is the system's, with a hint if there is one for it.
    pub(crate) fn io(cause: impl fmt::Display, reason: &io::Error) -> Self {
        Self { cause: cause.to_string(), ..Self::of(reason) }
    }

    /// A failure to write a file.
    pub(crate) fn unwritable(path: &Path, reason: &io::Error) -> Self {
        Self::io(format_args!("{}: cannot be written: {reason}", path.display()), reason)
    }

    /// A failure that may have one of the system's reasons somewhere below it.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let (mut reason, mut found) = (Some(error), None);
        while let (Some(error), None) = (reason, found) {
            let system = error.downcast_ref::<io::Error>();
            let number = error.downcast_ref::<Errno>().map(|error| error.raw_os_error());
            found = number.or_else(|| system?.raw_os_error()).and_then(hint);
            // What such an error was made of is not its source, whose source is.
            let inner =
                system.and_then(io::Error::get_ref).map(|inner| inner as &(dyn Error + 'static));
            reason = inner.or_else(|| error.source());
        }
        Self { hint: found.map(str::to_owned), ..Self::new(error) }
    }

    /// The first line of the cause.
    pub(crate) fn cause(&self) -> &str {
        self.cause.lines().next().unwrap_or_default()
    }

    /// Marks the result of a check that found something wrong.
    pub(crate) fn finding(self) -> Self {
        Self { kind: Kind::Finding, ..self }
    }

    /// The exit code that goes with it.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self.kind {
            Kind::Finding => exit_status::finding(),
            Kind::Error => exit_status::error(),
        }
    }

    /// Says what to do next where the system's reason does not.
    pub(crate) fn or_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: self.hint.or_else(|| Some(hint.into())), ..self }
    }

    /// Says what to do next; a line for each thing.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        self.maybe_hint(Some(hint))
    }

    /// Says what to do next, if something can be done.
    pub(crate) fn maybe_hint(self, hint: Option<impl Into<String>>) -> Self {
        Self { hint: hint.map(Into::into), ..self }
    }
}

/// What to do about one of the system's reasons for not writing, where its name does not say it.
fn hint(number: i32) -> Option<&'static str> {
    Some(match Errno::from_raw_os_error(number) {
        Errno::NOSPC => "make room on that file system, or write to another one",
        Errno::DQUOT => "the disk quota is used up: remove files, or write to another file system",
        Errno::FBIG => {
            "the process may not write files of this size (`ulimit -f` in a shell, LimitFSIZE= of \
             a unit; memory files count too), or the file system has none so large"
        }
        Errno::ROFS => "write to another file system: this one is mounted read-only",
        _ => return None,
    })
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        let mut hints = self.hint.iter().flat_map(|hint| hint.lines());
        hints.try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_reasons_have_hints_however_deep_they_are() {
        #[derive(Debug, thiserror::Error)]
        #[error("above")]
        struct Above(#[source] io::Error);
        let error = Above(io::Error::from(Errno::FBIG));
        assert!(Failure::of(&error).to_string().starts_with("above\nhint: the process may not"));
        let wrapped = io::Error::other(Above(io::Error::from(Errno::FBIG)));
        assert!(Failure::of(&wrapped).to_string().contains("hint: the process may not"));
        let full = Failure::unwritable(Path::new("x"), &Errno::NOSPC.into()).to_string();
        assert!(full.contains("\nhint: make room"), "{full}");
        assert!(!Failure::of(&Above(Errno::NOENT.into())).to_string().contains("hint"));
    }
}
