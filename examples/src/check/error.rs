//! Errors of `kaleidoscope check`.
use crate::failure::Failure;
use std::path::PathBuf;

/// Why a comparison failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No truth where it was expected.
    #[error(
        "no truth in {}: it needs at least truth/gt/proc_kpageflags\n\
         hint: `kaleidoscope lab run` makes a guest with its truth; --truth names a folder of \
         /proc files that were read in a guest",
        dir.display()
    )]
    NoTruth {
        /// Directory searched.
        dir: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// File or directory.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The image cannot be colored.
    #[error("{0}")]
    Image(Failure),
    /// A truth file is damaged.
    #[error("{path}: at byte {offset:#x}: {problem}")]
    Truth {
        /// File.
        path: PathBuf,
        /// Offset in bytes.
        offset: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A CSV file is damaged. The cause gives the line.
    #[error("{path}: {source}")]
    Csv {
        /// File.
        path: PathBuf,
        /// Cause.
        source: csv::Error,
    },
    /// A CSV file is well formed, but contradicts itself.
    #[error("{path}: line {line}: {problem}")]
    Row {
        /// File.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong there.
        problem: String,
    },
    /// The report cannot be serialized.
    #[error("cannot write the report as JSON: {0}")]
    Json(serde_json::Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Image(failure)
    }
}
