//! A decorator that changes some bytes of another memory.

use crate::MockError;
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, Gfn, Gpa};
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout};
use std::collections::BTreeMap;

/// Guest memory with some bytes changed. Only changed frames are copied, so that damaging a large
/// image is cheap.
pub struct PatchedMemory<'m> {
    base: &'m dyn GuestMemory,
    frames: BTreeMap<Gfn, Box<[u8; FRAME_BYTES]>>,
}

impl<'m> PatchedMemory<'m> {
    /// The memory `base`, unchanged so far.
    #[must_use]
    pub fn new(base: &'m dyn GuestMemory) -> Self {
        Self { base, frames: BTreeMap::new() }
    }

    /// Overwrites bytes starting at `gpa`; may cross frame boundaries.
    ///
    /// # Errors
    /// [`MockError::Memory`] when a frame is not RAM or cannot be read. Earlier frames of the range
    /// are changed nevertheless.
    pub fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MockError> {
        let (mut gpa, mut rest) = (gpa, bytes);
        while !rest.is_empty() {
            let at = gpa.offset_in_frame();
            let (now, later) = rest.split_at(rest.len().min(FRAME_BYTES - at));
            if let Some(target) = self.frame(gpa.gfn())?.get_mut(at..at + now.len()) {
                target.copy_from_slice(now);
            }
            gpa = Gpa(gpa.0.saturating_add(now.len() as u64));
            rest = later;
        }
        Ok(())
    }

    /// Number of frames changed.
    #[must_use]
    pub fn changed_frames(&self) -> usize {
        self.frames.len()
    }

    fn frame(&mut self, gfn: Gfn) -> Result<&mut [u8; FRAME_BYTES], MockError> {
        Ok(match self.frames.entry(gfn) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let mut bytes = Box::new([0; FRAME_BYTES]);
                self.base.read(gfn.gpa(), &mut bytes[..])?;
                new.insert(bytes)
            }
        })
    }

    /// First and last frame of a nonempty range; `None` when it is empty or wraps around.
    fn span(gpa: Gpa, len: usize) -> Option<(Gfn, Gfn)> {
        let last = gpa.checked_add((len as u64).checked_sub(1)?)?;
        Some((gpa.gfn(), last.gfn()))
    }
}

impl GuestMemory for PatchedMemory<'_> {
    fn layout(&self) -> &MemoryLayout {
        self.base.layout()
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.base.read(gpa, buf)?;
        let Some((first, last)) = Self::span(gpa, buf.len()) else { return Ok(()) };
        for (gfn, bytes) in self.frames.range(first..=last) {
            // Offset in the frame, and offset in the range, at which the two start to overlap.
            let frame = gfn.0 * FRAME_SIZE;
            let skipped = usize::try_from(gpa.0.saturating_sub(frame)).unwrap_or(usize::MAX);
            let at = usize::try_from(frame.saturating_sub(gpa.0)).unwrap_or(usize::MAX);
            let source = bytes.get(skipped..).unwrap_or_default();
            let target = buf.get_mut(at..).unwrap_or_default();
            target.iter_mut().zip(source).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    /// Borrows from the base if no frame of the range is changed, or from the changed frame if the
    /// range lies in it.
    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        let (first, last) = Self::span(gpa, len)?;
        match self.frames.range(first..=last).next() {
            None => self.base.slice(gpa, len),
            Some((_, bytes)) if first == last => {
                let at = gpa.offset_in_frame();
                bytes.get(at..at + len)
            }
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;
    use kaleidoscope_core::memory::VecMemory;

    /// Compares with a naive implementation that copies all memory.
    #[test]
    fn reads_as_if_all_were_copied() {
        let layout = MemoryLayout::contiguous(0x5000).unwrap();
        let mut rng = Rng::new(1);
        let base = VecMemory::from_bytes(
            layout,
            (0..0x5000).map(|_| rng.next_u64().to_le_bytes()[0]).collect(),
        );
        let (mut patched, mut copied) = (PatchedMemory::new(&base), base.clone());
        for _ in 0..20 {
            let bytes = rng.next_u64().to_le_bytes();
            let gpa = Gpa(rng.below(0x5000 - 8));
            patched.write(gpa, &bytes).unwrap();
            copied.write(gpa, &bytes).unwrap();
            for _ in 0..50 {
                let (gpa, len) = (rng.below(0x5000), rng.index(0x2800));
                let (mut a, mut b) = (vec![0; len], vec![0; len]);
                let same = patched.read(Gpa(gpa), &mut a).is_ok();
                assert_eq!(same, copied.read(Gpa(gpa), &mut b).is_ok());
                assert!(!same || a == b, "{gpa:#x} {len:#x}");
                if let Some(slice) = patched.slice(Gpa(gpa), len) {
                    assert_eq!(slice, b);
                }
            }
        }
        assert!(patched.write(Gpa(0x4fff), &[0; 2]).is_err());
        assert!(patched.changed_frames() > 1);
    }
}
