//! The lab's errors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::Failure;

/// Why a lab run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or device operation failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done ("read", "create", ...).
        doing: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A host program is not installed.
    #[error(
        "`{program}` is not installed; run: apt-get update && apt-get install -y {package}\n\
         (examples/lab/setup.sh installs all the lab needs)"
    )]
    MissingProgram {
        /// The program's name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A host program failed.
    #[error("`{command}` failed ({status}): {stderr}{hint}")]
    Program {
        /// The command line.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of its standard error.
        stderr: String,
        /// A remedy, or empty.
        hint: &'static str,
    },
    /// apt does not offer a package that the lab needs.
    #[error("packages: {0}")]
    Packages(String),
    /// The given kernel packages or folders lack something that a guest needs.
    #[error("kernel: {0}")]
    Kernel(String),
    /// A step of the guest took too long, or the guest ended early.
    #[error("{what} (after {} s); the end of the guest's serial console:\n{tail}", after.as_secs())]
    Guest {
        /// The awaited event, and how the wait ended.
        what: String,
        /// How long the wait took.
        after: Duration,
        /// The last lines of the guest's console.
        tail: String,
    },
    /// QEMU refused a QMP command, or its answer cannot be understood.
    #[error("QMP: {0}")]
    Qmp(String),
    /// The text of `info mtree -f` has no usable RAM regions.
    #[error("memory layout: {0}")]
    Layout(String),
    /// The guest's dump is damaged.
    #[error("truth dump at offset {offset:#x}: {what}")]
    Truth {
        /// Byte offset in the raw dump.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A clone cannot be made or its touches cannot be recorded.
    #[error("trace: {0}")]
    Trace(String),
    /// A guest's folder lacks usable traces.
    #[error("{}: {what}", path.display())]
    Traces {
        /// The file concerned.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A result cannot be written.
    #[error("{0}")]
    Output(Failure),
    /// A step inside the guest failed.
    #[error("guest agent: {0}")]
    Agent(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Output(failure)
    }
}

/// The lab's result.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: an I/O error with the operation and the file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
