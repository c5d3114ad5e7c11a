//! The manifest: a color map in a file (`.kscope`).
//!
//! A manifest is a 64-byte header and one zstd frame that holds one CBOR map, so that a program in
//! any language reads it with stock libraries. `docs/formats.md` describes it byte by byte. The
//! layers, outermost first:
//!
//! ```text
//!  container   header, SHA-256 checksum, zstd        what is wrong with the file as bytes
//!  payload     CBOR map <-> ColorMap, identity       what is wrong with a field
//!  columns     one column per frame property         what is wrong with a frame
//! ```
//!
//! Files are hostile: every length is checked against what is there and against [`Limits`] before
//! memory is taken for it, and whatever is damaged gives a [`ManifestError`] that names the place,
//! never a wrong map.

pub(crate) mod cbor;
pub(crate) mod columns;
pub(crate) mod container;
pub(crate) mod decode;
#[cfg(test)]
pub(crate) mod doc_example;
pub(crate) mod encode;
mod error;
pub(crate) mod fingerprints;
mod identity;
pub(crate) mod limits;
#[cfg(test)]
mod tests;

pub use error::ManifestError;
pub use identity::{IdentityError, ImageIdentity};
pub use limits::Limits;

use crate::color::ColorMap;
use crate::fingerprint::Fingerprints;
use crate::memory::GuestMemory;
use std::io::{Read, Write};
use std::path::Path;

/// Manifests among the files in the container.
const FAMILY: container::Family =
    container::Family { name: "manifest", magic: *b"KSCOPE\r\n", version: 1 };

/// A color map, the image that it belongs to, and what the coloring had to leave out.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Manifest {
    /// What every frame is.
    pub map: ColorMap,
    /// Which image the map was made from.
    pub identity: ImageIdentity,
    /// What was damaged or cut while coloring, one sentence each, for people.
    pub notes: Vec<String>,
    /// Fingerprints of frames, where somebody took them: of as many frames as the map has, or
    /// reading the file again fails.
    pub fingerprints: Option<Fingerprints>,
}

impl Manifest {
    /// A manifest without notes and fingerprints.
    #[must_use]
    pub fn new(map: ColorMap, identity: ImageIdentity) -> Self {
        Self { map, identity, notes: Vec::new(), fingerprints: None }
    }

    /// The manifest as the bytes of a file. Equal manifests give equal bytes under one version of
    /// this library.
    ///
    /// # Errors
    /// [`ManifestError::Limit`] when there is more of something than the format admits, that is,
    /// when a reader with [`Limits::for_frames`] would refuse it;
    /// [`ManifestError::Compression`] when zstd fails (out of memory).
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        encode::check(self)?;
        container::wrap(&FAMILY, &encode::payload(self))
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// [`ManifestError::Io`] when `out` fails, and those of [`to_bytes`](Self::to_bytes).
    pub fn write_to(&self, mut out: impl Write) -> Result<(), ManifestError> {
        Ok(out.write_all(&self.to_bytes()?)?)
    }

    /// Writes the manifest to a file, which has either its old content or the whole new one at
    /// every instant, also after a crash.
    ///
    /// # Errors
    /// [`ManifestError::Io`] when the directory cannot be written, and those of
    /// [`to_bytes`](Self::to_bytes).
    pub fn write_file(&self, path: &Path) -> Result<(), ManifestError> {
        container::write_atomically(path, &self.to_bytes()?)
    }

    /// Reads a manifest that is all of `bytes`.
    ///
    /// Takes no more memory than [`Limits::max_memory`], whatever the bytes are, and time linear in
    /// [`Limits::max_payload`]. This is the function to fuzz.
    ///
    /// # Errors
    /// [`ManifestError`], naming what is wrong and where.
    pub fn from_bytes(bytes: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        decode::payload(&container::unwrap(bytes, &FAMILY, limits.bounds())?, limits)
    }

    /// Reads a manifest that is all of `input`.
    ///
    /// # Errors
    /// [`ManifestError`], naming what is wrong and where.
    pub fn read_from(input: impl Read, limits: &Limits) -> Result<Self, ManifestError> {
        Self::from_bytes(&container::read_bounded(input, &FAMILY, limits.bounds())?, limits)
    }

    /// Reads a manifest file.
    ///
    /// # Errors
    /// [`ManifestError`], naming what is wrong and where.
    pub fn read_file(path: &Path, limits: &Limits) -> Result<Self, ManifestError> {
        Self::read_from(std::fs::File::open(path)?, limits)
    }

    /// Checks that `memory` is the image that the map was made from; see [`ImageIdentity`] for how
    /// much that says.
    ///
    /// # Errors
    /// [`IdentityError`] when it is another image, or cannot be read.
    pub fn verify(&self, memory: &dyn GuestMemory) -> Result<(), IdentityError> {
        self.identity.verify(memory, &self.map)
    }
}
