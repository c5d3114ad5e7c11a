//! Errors of creating, reading and writing descriptors.

use crate::codec::ManifestError;
use crate::identity::IdentityError;
use thiserror::Error;

/// Why a descriptor cannot be made, read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// The file, its container or a field is wrong, as in a manifest.
    #[error(transparent)]
    File(#[from] ManifestError),
    /// The color map inside is invalid. Offsets refer to its own payload.
    #[error("in the color map, field `colors`: {0}")]
    Colors(ManifestError),
    /// The image is another one, or cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A page server's address is not valid text, or too long.
    #[error("page server {number}: `{text}` cannot be written")]
    Address {
        /// Index in the list of servers.
        number: usize,
        /// The address, as far as it can be displayed.
        text: String,
    },
}
