//! Limits of a descriptor's size.

use crate::codec::container::Bounds;
use crate::manifest::Limits;

/// Most bytes of vCPU and device state.
pub const MAX_STATE: usize = 64 << 20;

/// Most page servers.
pub const MAX_SERVERS: usize = 16;

/// Most bytes of a page server's address. A Unix socket's path has at most 107, a host name 255.
pub(super) const MAX_ADDRESS: usize = 4096;

/// Most holes. Each takes up to 10 bytes.
pub(super) const MAX_HOLES: usize = 1 << 16;

/// Allowance for the parts of bounded size: layout, addresses, holes, unknown fields.
const FIXED_BYTES: u64 = 1 << 20;

/// Bytes per frame of the color map in locality order, including temporary memory while sorting.
const LOCALITY_BYTES: u64 = 64;

/// Limits of a descriptor, and thereby of the memory needed to read one. The default admits guests
/// of 1 TiB and is the limit of the format. A reader that knows the guest should allow only its
/// size: [`DescriptorLimits::for_frames`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DescriptorLimits {
    /// Most bytes of vCPU and device state, [`MAX_STATE`] at most.
    pub max_state: u32,
    /// Limits of the layout and the color map.
    pub manifest: Limits,
}

impl Default for DescriptorLimits {
    fn default() -> Self {
        Self { max_state: 64 << 20, manifest: Limits::default() }
    }
}

impl DescriptorLimits {
    /// Limits for guests of up to this many frames of RAM.
    #[must_use]
    pub fn for_frames(max_frames: u32) -> Self {
        Self { manifest: Limits::for_frames(max_frames), ..Self::default() }
    }

    /// Most bytes of uncompressed payload that these limits admit.
    #[must_use]
    pub fn max_payload(&self) -> u64 {
        FIXED_BYTES
            .saturating_add(u64::from(self.max_state))
            .saturating_add(self.manifest.max_payload())
    }

    /// Most bytes in a file that these limits admit.
    #[must_use]
    pub fn max_file(&self) -> u64 {
        self.bounds().max_file
    }

    /// Upper bound of the memory taken while reading a descriptor, in bytes: the file, the payload
    /// and the resulting descriptor.
    #[must_use]
    pub fn max_memory(&self) -> u64 {
        let frames = u64::from(self.manifest.max_frames);
        self.max_file()
            .saturating_add(self.max_payload().saturating_mul(3))
            .saturating_add(frames.saturating_mul(LOCALITY_BYTES))
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds::for_payload(self.max_payload())
    }

    pub(super) fn max_state(&self) -> usize {
        usize::try_from(self.max_state).unwrap_or(usize::MAX).min(MAX_STATE)
    }
}
