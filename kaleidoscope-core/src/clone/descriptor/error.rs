//! Why descriptors cannot be made, read or written.

use crate::manifest::{IdentityError, ManifestError};
use thiserror::Error;

/// Why a descriptor cannot be made, read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// The file, its container or a field is wrong, as in a manifest.
    #[error(transparent)]
    File(#[from] ManifestError),
    /// The color map inside is wrong. Offsets are those of its own payload.
    #[error("in the color map, field `colors`: {0}")]
    Colors(ManifestError),
    /// The image is another one, or cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A page server's address has no text, or too long a one.
    #[error("page server {number}: `{text}` cannot be written")]
    Address {
        /// Its place in the list.
        number: usize,
        /// The address, as far as it can be shown.
        text: String,
    },
}
