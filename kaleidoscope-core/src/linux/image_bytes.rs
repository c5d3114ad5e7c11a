//! The bytes of the kernel image, as far as a dump has them.

use super::locate::ImageSpan;
use crate::addr::FRAME_BYTES;
use crate::guest_os::Note;
use crate::memory::GuestMemory;
use std::borrow::Cow;

/// The image's bytes: borrowed where the memory is mapped in one piece, else copied page by page.
///
/// A dump may lack some pages: makedumpfile leaves out those that are zero. They are zeros here too,
/// and a note tells how many there are. Without any page, the bytes are empty.
pub(super) fn image_bytes<'m>(
    memory: &'m dyn GuestMemory,
    image: &ImageSpan,
) -> (Cow<'m, [u8]>, Option<Note>) {
    let left = memory.layout().span_at(image.gpa).map_or(0, |(_, left)| left);
    let len = usize::try_from(image.bytes.min(left)).unwrap_or(0);
    if let Some(bytes) = memory.slice(image.gpa, len) {
        return (Cow::Borrowed(bytes), None);
    }
    let mut copy = vec![0; len];
    if memory.read(image.gpa, &mut copy).is_ok() {
        return (Cow::Owned(copy), None);
    }
    let (mut pages, mut missing, mut first) = (0_u64, 0_u64, None);
    for page in copy.chunks_mut(FRAME_BYTES) {
        let gpa = image.gpa.checked_add(pages.saturating_mul(FRAME_BYTES as u64));
        pages = pages.saturating_add(1);
        if gpa.is_none_or(|gpa| memory.read(gpa, page).is_err()) {
            // A read that failed half-way may have left bytes of another page.
            page.fill(0);
            missing = missing.saturating_add(1);
            first = first.or(gpa);
        }
    }
    let Some(first) = first else { return (Cow::Owned(copy), None) };
    let text = format!(
        "{missing} of {pages} pages are not in the image and were taken for zeros, the first at {first}"
    );
    let note = Some(Note::incomplete("kernel image", text));
    if missing == pages { (Cow::Borrowed(&[]), note) } else { (Cow::Owned(copy), note) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Gpa, Gva};
    use crate::memory::{MemoryError, MemoryLayout};

    /// Memory of eight pages, of which some are missing.
    struct Dump {
        layout: MemoryLayout,
        missing: Vec<u64>,
    }

    impl GuestMemory for Dump {
        fn layout(&self) -> &MemoryLayout {
            &self.layout
        }

        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
            // What comes before a missing page is written nevertheless.
            for (at, byte) in (gpa.0..).zip(buf) {
                if self.missing.contains(&(at >> 12)) {
                    return Err(MemoryError::Missing { gpa: Gpa(at), len: 1 });
                }
                *byte = u8::try_from(at >> 12).unwrap();
            }
            Ok(())
        }
    }

    fn bytes(missing: &[u64]) -> (Vec<u8>, Option<String>) {
        let layout = MemoryLayout::contiguous(8 << 12).unwrap();
        let dump = Dump { layout, missing: missing.to_vec() };
        let image = ImageSpan { gva: Gva(0xffff_ffff_8100_0000), gpa: Gpa(0x2000), bytes: 0x4800 };
        let (bytes, note) = image_bytes(&dump, &image);
        (bytes.into_owned(), note.map(|note| note.to_string()))
    }

    #[test]
    fn missing_pages_are_zeros_and_told() {
        let (all, note) = bytes(&[]);
        assert_eq!((all.len(), all[0], all[0x47ff], note), (0x4800, 2, 6, None));
        let (some, note) = bytes(&[3, 6, 7]);
        let firsts: Vec<u8> = some.iter().step_by(0x1000).copied().collect();
        assert_eq!(firsts, [2, 0, 4, 5, 0]);
        let note = note.unwrap();
        assert!(note.contains("2 of 5 pages") && note.ends_with("at 0x3000"), "{note}");
        let (none, note) = bytes(&[2, 3, 4, 5, 6]);
        assert!(none.is_empty() && note.is_some());
    }
}
