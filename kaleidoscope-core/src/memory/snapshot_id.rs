//! Which memories have the same bytes.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identifies the bytes of a snapshot. Two memories, or a memory and a page source, with equal ids
/// have the same bytes, at all times. Different ids say nothing.
///
/// An id lets an engine notice that a color map was not made from the snapshot that its pages come
/// from: see [`FreeFrames::Auto`](../clone/enum.FreeFrames.html#variant.Auto).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SnapshotId(Id);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Id {
    /// A memory of this process, by a number that is never used again.
    Memory(u64),
    /// An image, by the digest of its identity.
    Image([u8; 32]),
}

impl SnapshotId {
    /// An id that no other memory of this process has.
    #[must_use]
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only the number matters, and no two calls get the same.
        Self(Id::Memory(NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The id of an image elsewhere, such as a page server's, by the digest of its
    /// [`ImageIdentity`](crate::manifest::ImageIdentity).
    #[must_use]
    pub const fn of_image(digest: [u8; 32]) -> Self {
        Self(Id::Image(digest))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::memory::{GuestMemory, MemoryLayout, VecMemory};

    #[test]
    fn memory_that_was_changed_has_another_id() {
        let layout = MemoryLayout::contiguous(0x2000).unwrap();
        let mut memory = VecMemory::zeroed(layout.clone());
        let (copy, first) = (memory.clone(), memory.snapshot_id());
        assert!(first.is_some());
        assert_eq!(copy.snapshot_id(), first);
        assert_ne!(VecMemory::zeroed(layout).snapshot_id(), first);
        memory.write(Gpa(0x1000), &[1]).unwrap();
        let second = memory.snapshot_id();
        assert_ne!(second, first);
        memory.bytes_mut()[0] = 1;
        assert_ne!(memory.snapshot_id(), second);
        assert_eq!(copy.snapshot_id(), first);
    }

    #[test]
    fn images_are_told_by_their_digest() {
        assert_eq!(SnapshotId::of_image([1; 32]), SnapshotId::of_image([1; 32]));
        assert_ne!(SnapshotId::of_image([1; 32]), SnapshotId::of_image([2; 32]));
        assert_ne!(SnapshotId::of_image([0; 32]), SnapshotId::unique());
    }
}
