//! Why a command could not do its job, and what to do about it.

use std::fmt;
use std::path::Path;

/// Ends a command: a cause on one line and, where there is one, a hint of what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    cause: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub(crate) fn new(cause: impl fmt::Display) -> Self {
        Self { cause: cause.to_string(), hint: None }
    }

    /// A failure to read or write a file.
    pub(crate) fn at(path: &Path, cause: impl fmt::Display) -> Self {
        Self::new(format_args!("{}: {cause}", path.display()))
    }

    /// Says what to do next.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Writes text to standard output. A reader that went away (`| head`) is not a failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format_args!("cannot write the result: {error}")))
        }
        _ => Ok(()),
    }
}
