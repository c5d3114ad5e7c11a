//! Why recordings cannot be read, written or merged.

use crate::codec::ManifestError;
use thiserror::Error;

/// Why a recording cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The file, its container or a field is wrong, as in a manifest.
    #[error(transparent)]
    File(#[from] ManifestError),
    /// An entry violates the format.
    #[error("column `{column}`, entry {entry}: {problem}")]
    Entry {
        /// Name of the column.
        column: &'static str,
        /// Number of the entry.
        entry: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Why recordings cannot be merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The list of recordings is empty.
    #[error("no recording to merge")]
    Empty,
    /// Names are hashed with different salts, so that equal names cannot be recognized.
    #[error("names are hashed with different salts")]
    Salts,
    /// The result would have more runs than [`MAX_RUNS`](super::MAX_RUNS).
    #[error("more than {} runs", super::MAX_RUNS)]
    Runs,
}
