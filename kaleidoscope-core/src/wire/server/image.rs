//! The images that a server serves.

use crate::color::ColorMap;
use crate::memory::GuestMemory;
use std::fmt;
use std::sync::Arc;

/// A snapshot image with its metadata.
#[derive(Clone)]
pub struct ServedImage {
    /// The guest's memory, as it was at the freeze.
    pub memory: Arc<dyn GuestMemory>,
    /// The digest by which clients name the image, usually its
    /// [`ImageIdentity`](crate::manifest::ImageIdentity). Not all zeros.
    pub digest: [u8; 32],
    /// Color of each frame, so that compression is tried only where it pays. Without colors, all
    /// frames count as one color.
    pub colors: Option<Arc<ColorMap>>,
    /// The descriptor that clones start from, served unchanged; empty if there is none. At most
    /// 1 GiB.
    pub descriptor: Arc<[u8]>,
}

impl ServedImage {
    /// An image without colors and descriptor.
    #[must_use]
    pub fn new(memory: Arc<dyn GuestMemory>, digest: [u8; 32]) -> Self {
        Self { memory, digest, colors: None, descriptor: Arc::new([]) }
    }
}

impl fmt::Debug for ServedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedImage")
            .field("digest", &self.digest)
            .field("frames", &self.memory.layout().frames())
            .field("descriptor", &self.descriptor.len())
            .finish_non_exhaustive()
    }
}
