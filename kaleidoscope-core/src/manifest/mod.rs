//! The manifest: a color map in a file (`.kscope`).
//!
//! A manifest is a 64-byte header and one zstd frame that contains one CBOR map, so programs in any
//! language can read it with standard libraries. `docs/formats.md` specifies every byte. The
//! layers, outermost first:
//!
//! ```text
//!  codec            container, CBOR, shared fields   errors of the file's bytes or a field
//!  encode, decode   CBOR map <-> ColorMap            errors of a field
//!  columns          one column per frame property    errors of a frame
//! ```
//!
//! Files are untrusted: every length is checked against the bytes present and against [`Limits`]
//! before memory is allocated for it. A damaged file results in a [`ManifestError`] that names the
//! location, never in a wrong map.

mod columns;
pub(crate) mod decode;
#[cfg(test)]
mod doc_example;
pub(crate) mod encode;
mod limits;
#[cfg(test)]
mod tests;

pub use crate::codec::ManifestError;
pub use crate::identity::{IdentityError, ImageIdentity};
pub use limits::Limits;

use crate::codec::container;
use crate::color::{ColorMap, FreeFrameTrust};
use crate::fingerprint::Fingerprints;
use crate::memory::GuestMemory;
use std::io::{Read, Write};
use std::path::Path;

/// The manifest type of container files.
const FAMILY: container::Family =
    container::Family { name: "manifest", magic: *b"KSCOPE\r\n", version: 1 };

/// A color map, the identity of its image, and notes on what coloring left out.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Manifest {
    /// The type and color of every frame.
    pub map: ColorMap,
    /// The image that the map was made from.
    pub identity: ImageIdentity,
    /// What was damaged or truncated during coloring, one sentence each, for display.
    pub notes: Vec<String>,
    /// Fingerprints of frames, if they were computed. The table must have as many frames as the
    /// map; [`to_bytes`](Self::to_bytes) rejects others.
    pub fingerprints: Option<Fingerprints>,
}

impl Manifest {
    /// A manifest without notes and fingerprints.
    #[must_use]
    pub fn new(map: ColorMap, identity: ImageIdentity) -> Self {
        Self { map, identity, notes: Vec::new(), fingerprints: None }
    }

    /// Encodes the manifest as the bytes of a file. Equal manifests give equal bytes with one
    /// version of this library.
    ///
    /// # Errors
    /// [`ManifestError::Limit`] if the manifest exceeds the limits of the format, that is, if a
    /// reader with [`Limits::for_frames`] would reject it; [`ManifestError::Compression`] if zstd
    /// fails (out of memory).
    #[cfg(feature = "write")]
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        encode::check(self)?;
        container::wrap(&FAMILY, &encode::payload(self))
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// [`ManifestError::Io`] if `out` fails, and those of [`to_bytes`](Self::to_bytes).
    #[cfg(feature = "write")]
    pub fn write_to(&self, mut out: impl Write) -> Result<(), ManifestError> {
        Ok(out.write_all(&self.to_bytes()?)?)
    }

    /// Writes the manifest to a file atomically: at any time, also after a crash, the file has
    /// either its old or its complete new contents.
    ///
    /// # Errors
    /// [`ManifestError::Io`] if the directory cannot be written, and those of
    /// [`to_bytes`](Self::to_bytes).
    #[cfg(feature = "write")]
    pub fn write_file(&self, path: &Path) -> Result<(), ManifestError> {
        container::write_atomically(path, &self.to_bytes()?)
    }

    /// Reads a manifest that is all of `bytes`.
    ///
    /// Takes at most [`Limits::max_memory`] bytes of memory, whatever the input, and time linear in
    /// [`Limits::max_payload`]. This is the function to fuzz.
    ///
    /// # Errors
    /// [`ManifestError`], which names the problem and its location.
    pub fn from_bytes(bytes: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        decode::payload(&container::unwrap(bytes, &FAMILY, limits.bounds())?, limits)
    }

    /// Reads a manifest that is all of `input`.
    ///
    /// # Errors
    /// [`ManifestError`], which names the problem and its location.
    pub fn read_from(input: impl Read, limits: &Limits) -> Result<Self, ManifestError> {
        Self::from_bytes(&container::read_bounded(input, &FAMILY, limits.bounds())?, limits)
    }

    /// Reads a manifest file.
    ///
    /// # Errors
    /// [`ManifestError`], which names the problem and its location.
    pub fn read_file(path: &Path, limits: &Limits) -> Result<Self, ManifestError> {
        Self::read_from(std::fs::File::open(path)?, limits)
    }

    /// Checks that `memory` is the image that the map was made from; see [`ImageIdentity`] for the
    /// limits of this check. From then on the map trusts the free frames of `memory` if its
    /// coloring did ([`ColorMap::has_trusted_free_frames`]).
    ///
    /// # Errors
    /// [`IdentityError`] if it is another image or cannot be read. The map then trusts no free
    /// frames.
    pub fn verify(&mut self, memory: &dyn GuestMemory) -> Result<(), IdentityError> {
        let claim = FreeFrameTrust::claimed(self.map.free_frames().is_claimed());
        self.map = self.map.clone().with_free_frames(claim);
        self.identity.verify(memory, &self.map)?;
        self.map = self.map.clone().with_free_frames(claim.verified(memory.snapshot_id()));
        Ok(())
    }
}
