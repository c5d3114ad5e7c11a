//! Checks that the frames of an image are unchanged.

use super::{Content, Domain, Fingerprints, contents};
use crate::addr::FrameIndex;
use crate::memory::{GuestMemory, MemoryError, Page};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Frames fingerprinted at a time.
const CHUNK: u32 = 1 << 16;

/// The fingerprints of all frames of an image, which detect a change of any frame.
///
/// Their [`Domain`] is derived from the image's digest ([`Domain::of_image`]) and is not secret.
/// They are for checking images and must not be used to share pages between guests.
#[derive(Clone, Debug)]
pub struct WholeImage {
    domain: Domain,
    table: Arc<Fingerprints>,
}

impl WholeImage {
    /// Reads and fingerprints all frames of an image with this digest, on up to `threads` threads.
    /// Takes about 60 bytes per frame temporarily, and 16 bytes per frame afterwards.
    ///
    /// # Errors
    /// [`MemoryError`] if a frame cannot be read. Frames that the image does not hold are not an
    /// error.
    pub fn of(
        memory: &dyn GuestMemory,
        digest: &[u8; 32],
        threads: NonZeroUsize,
    ) -> Result<Self, MemoryError> {
        let domain = Domain::of_image(digest);
        let count = memory.layout().frames();
        let frames: Vec<_> = (0..count).map(FrameIndex).collect();
        let found = contents(memory, &frames, &domain, threads)?;
        let table = Fingerprints::new(domain.id(), count, frames.into_iter().zip(found));
        Ok(Self { domain, table: Arc::new(table) })
    }

    /// Fingerprints stored with an image; `None` if they belong to another domain than that of this
    /// check.
    #[must_use]
    pub fn from_table(table: &Arc<Fingerprints>, digest: &[u8; 32]) -> Option<Self> {
        let domain = Domain::of_image(digest);
        (table.domain() == domain.id()).then(|| Self { domain, table: Arc::clone(table) })
    }

    /// The fingerprints.
    #[must_use]
    pub fn table(&self) -> &Arc<Fingerprints> {
        &self.table
    }

    /// Whether `page` is the image's page of this frame.
    #[must_use]
    pub fn is_same(&self, frame: FrameIndex, page: &Page) -> bool {
        self.expected(frame) == self.domain.content(page)
    }

    /// The first frame of `memory`, among those for which `wanted` is true, that differs from the
    /// image.
    ///
    /// # Errors
    /// [`MemoryError`] if a frame cannot be read.
    pub fn first_difference(
        &self,
        memory: &dyn GuestMemory,
        wanted: &dyn Fn(FrameIndex) -> bool,
        threads: NonZeroUsize,
    ) -> Result<Option<FrameIndex>, MemoryError> {
        let all = self.table.frames();
        let mut start = 0;
        while start < all {
            let end = start.saturating_add(CHUNK).min(all);
            let frames: Vec<_> = (start..end).map(FrameIndex).filter(|f| wanted(*f)).collect();
            let found = contents(memory, &frames, &self.domain, threads)?;
            let differs = |(frame, found): &(FrameIndex, Content)| self.expected(*frame) != *found;
            if let Some((frame, _)) = frames.into_iter().zip(found).find(differs) {
                return Ok(Some(frame));
            }
            start = end;
        }
        Ok(None)
    }

    fn expected(&self, frame: FrameIndex) -> Content {
        match self.table.get(frame) {
            Some(fingerprint) => Content::Page(fingerprint),
            None if self.table.is_zero(frame) => Content::Zero,
            None => Content::Missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::memory::{MemoryLayout, VecMemory};

    fn memory() -> VecMemory {
        let mut memory = VecMemory::zeroed(
            MemoryLayout::new(&[(Gpa(0), 3 << 12), (Gpa(1 << 32), 700 << 12)]).unwrap(),
        );
        for (number, page) in memory.bytes_mut().chunks_mut(4096).enumerate().skip(2) {
            page[number % 4096] = 1;
        }
        memory
    }

    #[test]
    fn a_changed_byte_of_any_frame_is_found() {
        let digest = [7; 32];
        let threads = NonZeroUsize::new(3).unwrap();
        let mut memory = memory();
        let whole = WholeImage::of(&memory, &digest, threads).unwrap();
        let all: &dyn Fn(FrameIndex) -> bool = &|_| true;
        assert_eq!(whole.first_difference(&memory, all, threads).unwrap(), None);
        let came = WholeImage::from_table(whole.table(), &digest).unwrap();
        for frame in [0u32, 2, 3, 350, 702] {
            let at = frame as usize * 4096 + 4095;
            memory.bytes_mut()[at] ^= 1;
            let found = came.first_difference(&memory, all, threads).unwrap();
            assert_eq!(found, Some(FrameIndex(frame)));
            let others: &dyn Fn(FrameIndex) -> bool = &|f| f.0 != frame;
            assert_eq!(came.first_difference(&memory, others, threads).unwrap(), None);
            let page = *memory.bytes()[frame as usize * 4096..].first_chunk().unwrap();
            assert!(!came.is_same(FrameIndex(frame), &page));
            memory.bytes_mut()[at] ^= 1;
        }
    }

    #[test]
    fn other_fingerprints_are_not_for_checking() {
        let memory = memory();
        let whole = WholeImage::of(&memory, &[7; 32], NonZeroUsize::MIN).unwrap();
        assert!(WholeImage::from_table(whole.table(), &[8; 32]).is_none());
        let tenant = Arc::new(Fingerprints::new(Domain::new([7; 32]).id(), 703, []));
        assert!(WholeImage::from_table(&tenant, &[7; 32]).is_none());
    }
}
