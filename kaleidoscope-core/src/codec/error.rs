//! Errors of reading and writing files.

use crate::color::MapError;
use crate::memory::LayoutError;
use thiserror::Error;

/// Why a manifest or another file in the same container cannot be read or written. Offsets "of the
/// file" count from its first byte, offsets "of the payload" from the first byte of the
/// uncompressed CBOR map.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The system could not read or write the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The file does not start with the expected eight bytes.
    #[error(
        "not a {name}: the file starts with `{}`, not `{}`",
        found.escape_ascii(),
        magic.escape_ascii()
    )]
    Magic {
        /// Expected type of the file.
        name: &'static str,
        /// The expected bytes.
        magic: [u8; 8],
        /// The bytes found, fewer than eight if the file is shorter.
        found: Vec<u8>,
    },
    /// The file has another major version of the format.
    #[error("{name} format version {found}; this program reads version {supported}")]
    Version {
        /// Expected type of the file.
        name: &'static str,
        /// Version of the file.
        found: u32,
        /// The supported version.
        supported: u32,
    },
    /// An unknown flag is set.
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
        /// Bytes present.
        found: u64,
    },
    /// Bytes follow the end of the file's contents.
    #[error("unexpected bytes after the end at byte {end} of the file")]
    TrailingBytes {
        /// Length of the file according to its header.
        end: u64,
    },
    /// The header or the payload is corrupt.
    #[error("damaged: its SHA-256 checksum does not match header and payload")]
    Checksum,
    /// The file exceeds the caller's [`Limits`](crate::manifest::Limits).
    #[error("{found} {what}, more than the limit of {limit}")]
    Limit {
        /// The limited quantity and its unit.
        what: &'static str,
        /// The amount in the file.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The payload is not one zstd frame of the stated size, or zstd failed.
    #[error("payload cannot be (de)compressed: {0}")]
    Compression(String),
    /// A field of the payload violates the format.
    #[error("field `{field}`, byte {at:#x} of the payload: {problem}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Offset in the payload.
        at: usize,
        /// What is wrong.
        problem: String,
    },
    /// A region does not have the stated number of frames.
    #[error("field `regions`: region {region} states {stated} frames and has {counted}")]
    RegionFrames {
        /// Number of the region.
        region: usize,
        /// Frames according to the region's record.
        stated: u32,
        /// Frames whose records name the region.
        counted: u32,
    },
    /// A frame record violates the format.
    #[error("column `{column}`, frame index {index}: {problem}")]
    Frame {
        /// Name of the column.
        column: &'static str,
        /// Frame index.
        index: usize,
        /// What is wrong.
        problem: String,
    },
    /// The RAM regions are not a valid layout.
    #[error("field `layout`: {0}")]
    Layout(#[from] LayoutError),
    /// The frame records are not a valid map.
    #[error("field `frames`: {0}")]
    Map(#[from] MapError),
}
