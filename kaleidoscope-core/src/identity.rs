//! Identifies the image that a map was made from.

use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::color::{Color, ColorMap};
use crate::memory::{GuestMemory, MemoryError, MemoryLayout, read_page};
use sha2::{Digest, Sha256};
use std::fmt;
use thiserror::Error;

/// Prefix of the hashed bytes, which separates the digest from other uses of SHA-256.
const HASH_PREFIX: &[u8] = b"kaleidoscope image identity 1\0";

/// Maximum number of frames in the regular sample.
const SAMPLE_FRAMES: u32 = 1024;

/// Maximum number of kernel-data frames that are hashed, those with the lowest indices.
const KERNEL_DATA_FRAMES: usize = 4096;

/// Ties a map to the image that it was made from: a SHA-256 digest of the RAM layout and a sample
/// of frames.
///
/// The sample is every ⌈n/1024⌉-th of n frames, and the first 4096 frames whose color is
/// kernel-data. The regular frames distinguish guests, boots and kernels. Kernel data changes with
/// every clock tick, which distinguishes two snapshots of a running guest. At most 20 MiB are
/// hashed.
///
/// # Guarantees
/// Equal digests mean equal layouts and equal bytes in all sampled frames, unless SHA-256 has a
/// collision. They do *not* mean that the other frames are equal: damage or tampering outside the
/// sample is not detected. If no kernel was recognized, no frame is kernel-data, and two snapshots
/// of one guest may have equal digests. The digest guards against mix-ups and not against forgery;
/// to detect forgery, hash the whole image.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageIdentity {
    /// The digest.
    pub digest: [u8; 32],
    /// Number of frames in the sample.
    pub frames: u32,
}

/// Why an image is not the one that a map was made from.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The two have different RAM.
    #[error(
        "the image has {image} frames of RAM in {image_regions} regions; the map has {map} in \
         {map_regions}"
    )]
    Layout {
        /// Frames of the image.
        image: u32,
        /// RAM regions of the image.
        image_regions: usize,
        /// Frames of the map.
        map: u32,
        /// RAM regions of the map.
        map_regions: usize,
    },
    /// The image has other bytes.
    #[error("the image is not the one that was colored: identity {found} instead of {expected}")]
    Digest {
        /// Identity of the image.
        found: ImageIdentity,
        /// Identity that the map was made with.
        expected: ImageIdentity,
    },
    /// The image cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl ImageIdentity {
    /// Computes the identity of the image `memory`, from which `map` was made.
    ///
    /// # Errors
    /// [`IdentityError::Layout`] if the map has another layout than the memory,
    /// [`IdentityError::Memory`] if a frame cannot be read. A frame that the image does not hold
    /// ([`MemoryError::Missing`]) is part of the identity.
    pub fn of(memory: &dyn GuestMemory, map: &ColorMap) -> Result<Self, IdentityError> {
        let layout = memory.layout();
        if layout != map.layout() {
            return Err(IdentityError::Layout {
                image: layout.frames(),
                image_regions: layout.regions().len(),
                map: map.layout().frames(),
                map_regions: map.layout().regions().len(),
            });
        }
        let mut hash = Sha256::new_with_prefix(HASH_PREFIX);
        hash_layout(&mut hash, layout);
        let mut frames = 0;
        let mut buf = [0; FRAME_BYTES];
        for index in sample(map) {
            let Some(gfn) = layout.gfn_of(index) else { continue };
            hash.update(index.0.to_le_bytes());
            match read_page(memory, gfn, &mut buf)? {
                Some(page) => {
                    hash.update([1]);
                    hash.update(page);
                }
                None => hash.update([0]),
            }
            frames += 1;
        }
        Ok(Self { digest: hash.finalize().into(), frames })
    }

    /// Checks that `memory` is the image that `map` was made from.
    ///
    /// # Errors
    /// [`IdentityError`] if it is another image or cannot be read.
    pub fn verify(&self, memory: &dyn GuestMemory, map: &ColorMap) -> Result<(), IdentityError> {
        let found = Self::of(memory, map)?;
        if found != *self {
            return Err(IdentityError::Digest { found, expected: *self });
        }
        Ok(())
    }
}

/// Hashes the layout: number of regions, then first frame and number of frames of each region, all
/// as little-endian `u64`.
fn hash_layout(hash: &mut Sha256, layout: &MemoryLayout) {
    let count = u64::try_from(layout.regions().len()).unwrap_or(u64::MAX);
    hash.update(count.to_le_bytes());
    for region in layout.regions() {
        hash.update(region.start.0.to_le_bytes());
        hash.update(u64::from(region.frames).to_le_bytes());
    }
}

/// The sampled frames, by ascending index, each once.
fn sample(map: &ColorMap) -> impl Iterator<Item = FrameIndex> + '_ {
    let step = map.layout().frames().div_ceil(SAMPLE_FRAMES).max(1);
    let mut kernel_data = 0;
    (0u32..).zip(map.colors()).filter_map(move |(index, &color)| {
        let data = color == Color::KernelData && kernel_data < KERNEL_DATA_FRAMES;
        kernel_data += usize::from(data);
        (data || index % step == 0).then_some(FrameIndex(index))
    })
}

impl fmt::Display for ImageIdentity {
    /// The digest in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageIdentity({self} over {} frames)", self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::color::{Frame, KernelIdentity};
    use crate::memory::VecMemory;

    /// 4096 frames, so every fourth is sampled; frames 5 to 9 are kernel data.
    fn guest() -> (VecMemory, ColorMap) {
        let layout = MemoryLayout::contiguous(4096 * 4096).unwrap();
        let mut memory = VecMemory::zeroed(layout.clone());
        for (i, byte) in memory.bytes_mut().iter_mut().enumerate() {
            *byte = u8::try_from(i / 7 % 251).unwrap();
        }
        let color = |i| if (5..10).contains(&i) { Color::KernelData } else { Color::Free };
        let frames = (0..4096).map(|i| Frame { color: color(i), ..Frame::default() });
        let map = ColorMap::new(layout, KernelIdentity::default(), frames, Vec::new()).unwrap();
        (memory, map)
    }

    #[test]
    fn sampled_frames_and_kernel_data_count() {
        let (mut memory, map) = guest();
        let identity = ImageIdentity::of(&memory, &map).unwrap();
        assert_eq!(
            identity.frames,
            1024 + 4,
            "frames 5, 6, 7 and 9 are outside the regular sample"
        );
        identity.verify(&memory, &map).unwrap();
        let mut changes = |frame: u64| {
            let gpa = Gpa(frame * 4096 + 4095);
            let mut byte = [0];
            memory.read(gpa, &mut byte).unwrap();
            memory.write(gpa, &[!byte[0]]).unwrap();
            let result = identity.verify(&memory, &map);
            memory.write(gpa, &byte).unwrap();
            matches!(result, Err(IdentityError::Digest { .. }))
        };
        assert!(changes(0) && changes(8) && changes(4092), "the regular sample");
        assert!(changes(5) && changes(9), "kernel data");
        assert!(!changes(1) && !changes(4095), "outside the sample");
    }

    #[test]
    fn the_layout_counts() {
        let (memory, map) = guest();
        let identity = ImageIdentity::of(&memory, &map).unwrap();
        let half = VecMemory::zeroed(MemoryLayout::contiguous(2048 * 4096).unwrap());
        let error = identity.verify(&half, &map).unwrap_err();
        assert!(matches!(error, IdentityError::Layout { image: 2048, map: 4096, .. }));
    }

    #[test]
    fn kernel_data_is_bounded() {
        let layout = MemoryLayout::contiguous(16384 * 4096).unwrap();
        let frames = (0..16384).map(|_| Frame { color: Color::KernelData, ..Frame::default() });
        let map = ColorMap::new(layout, KernelIdentity::default(), frames, Vec::new()).unwrap();
        // The first 4096 are kernel data, 256 of them also in the regular sample of every 16th
        // frame.
        assert_eq!(sample(&map).count(), 4096 + 1024 - 256);
    }
}
