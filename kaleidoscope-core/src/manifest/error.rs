//! Why a manifest, or another file of its family, cannot be read or written.

use crate::color::MapError;
use crate::memory::LayoutError;
use thiserror::Error;

/// Why a manifest, or another file of its family, cannot be read or written. Offsets "of the file"
/// count from its first byte, offsets "of the payload" from the first byte of the uncompressed CBOR
/// map.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The system could not read or write the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The first eight bytes are not those of such a file.
    #[error("not a {name}: the file starts with `{}`, not `{}`", found.escape_ascii(), magic.escape_ascii())]
    Magic {
        /// What the file should be.
        name: &'static str,
        /// The bytes that it should start with.
        magic: [u8; 8],
        /// The bytes found, fewer than eight at the end of a short file.
        found: Vec<u8>,
    },
    /// The file has another major version of the format.
    #[error("{name} format version {found}; this program reads version {supported}")]
    Version {
        /// What the file should be.
        name: &'static str,
        /// Version of the file.
        found: u32,
        /// The one version that is read.
        supported: u32,
    },
    /// A flag is set whose meaning is unknown.
    #[error("flags {found:#x} are not known to this program")]
    Flags {
        /// All flags of the file.
        found: u32,
    },
    /// The file ends early.
    #[error("cut short: {expected} bytes expected, {found} found")]
    Truncated {
        /// Length of the file according to its header.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// There is something after the file's end.
    #[error("unexpected bytes after the end at byte {end} of the file")]
    TrailingBytes {
        /// Length of the file according to its header.
        end: u64,
    },
    /// Header or payload are not what was written.
    #[error("damaged: its SHA-256 checksum does not match header and payload")]
    Checksum,
    /// The file asks for more than the caller's [`Limits`](super::Limits) allow.
    #[error("{found} {what}, more than the limit of {limit}")]
    Limit {
        /// What there is too much of, and its unit.
        what: &'static str,
        /// How much the file asks for.
        found: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// The payload is not one zstd frame of the stated size, or zstd failed.
    #[error("payload cannot be (de)compressed: {0}")]
    Compression(String),
    /// A field of the payload is not what the format says.
    #[error("field `{field}`, byte {at:#x} of the payload: {problem}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// Offset in the payload.
        at: usize,
        /// What is wrong.
        problem: String,
    },
    /// A region does not have the number of frames that the file says.
    #[error("field `regions`: region {region} states {stated} frames and has {counted}")]
    RegionFrames {
        /// Number of the region.
        region: usize,
        /// Frames according to the region's record.
        stated: u32,
        /// Frames whose records name the region.
        counted: u32,
    },
    /// A frame record is not what the format says.
    #[error("column `{column}`, frame index {index}: {problem}")]
    Frame {
        /// Name of the column.
        column: &'static str,
        /// Frame index.
        index: usize,
        /// What is wrong.
        problem: String,
    },
    /// The RAM regions do not make a layout.
    #[error("field `layout`: {0}")]
    Layout(#[from] LayoutError),
    /// The frame records do not make a map.
    #[error("field `frames`: {0}")]
    Map(#[from] MapError),
}
