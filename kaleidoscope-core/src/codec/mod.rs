//! The codec shared by all files: manifests, recordings and clone descriptors.
//!
//! A file is a 64-byte header and one zstd frame that contains one CBOR map. `docs/formats.md`
//! specifies every byte. The layers, outermost first:
//!
//! ```text
//!  container   header, SHA-256 checksum, zstd        errors of the file's bytes
//!  cbor        items of the payload, by offset       errors of an item
//!  fields      keys of a map, in any order           errors of a field
//!  columns, names, text, guest, fingerprints         parts that several formats share
//! ```
//!
//! The formats themselves are in `manifest`, `recording` and `clone::descriptor`. All of them
//! report [`ManifestError`], because programs handle damaged files alike, whatever the files hold.
//!
//! Files are untrusted: every length is checked against the bytes present and against the limits of
//! the format before memory is allocated for it.

pub(crate) mod cbor;
pub(crate) mod columns;
pub(crate) mod container;
#[cfg(test)]
pub(crate) mod doc_example;
mod error;
pub(crate) mod fields;
pub(crate) mod fingerprints;
pub(crate) mod guest;
pub(crate) mod names;
pub(crate) mod text;
mod within;

pub use error::ManifestError;
pub(crate) use within::{to_u64, within};
