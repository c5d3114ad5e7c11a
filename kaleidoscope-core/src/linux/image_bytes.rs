//! The bytes of the kernel image, with zeros for pages that a dump lacks.

use super::locate::ImageSpan;
use crate::addr::{FRAME_BYTES, FRAME_SIZE, Gpa, Gva};
use crate::guest_os::Note;
use crate::memory::GuestMemory;
use crate::paging::KernelSpace;
use std::borrow::Cow;
use std::ops::Range;

/// The part of the image to copy, if the image has to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ImagePart {
    /// All of the image.
    All,
    /// The read-only mappings, which contain symbol tables and types: a quarter of a typical image.
    /// Everything else is zeros.
    ReadOnly,
}

/// The image's bytes: borrowed if the memory is mapped in one piece, else copied.
///
/// A dump may lack pages: makedumpfile omits pages of zeros. Missing pages are zeros here too, and
/// a note reports their number. If all pages are missing, the result is empty.
pub(super) fn image_bytes<'m>(
    memory: &'m dyn GuestMemory,
    image: &ImageSpan,
    space: &KernelSpace,
    wanted: ImagePart,
) -> (Cow<'m, [u8]>, Option<Note>) {
    let left = memory.layout().span_at(image.gpa).map_or(0, |(_, left)| left);
    let len = usize::try_from(image.bytes.min(left)).unwrap_or(0);
    if let Some(bytes) = memory.slice(image.gpa, len) {
        return (Cow::Borrowed(bytes), None);
    }
    let parts = match wanted {
        ImagePart::ReadOnly => read_only_parts(image, space),
        ImagePart::All => Vec::new(),
    };
    // Pages of this allocation that are never written use no memory.
    let mut copy = vec![0; len];
    let mut pages = Pages::default();
    if parts.is_empty() {
        pages.read(memory, image.gpa, &mut copy);
    }
    for part in parts {
        let gpa = image.gpa.checked_add(part.start as u64);
        let part = part.start..part.end.min(len);
        if let Some((gpa, bytes)) = gpa.zip(copy.get_mut(part)) {
            pages.read(memory, gpa, bytes);
        }
    }
    let Pages { seen, missing, first } = pages;
    let Some(first) = first else { return (Cow::Owned(copy), None) };
    let text = format!(
        "{missing} of {seen} pages are not in the image and were taken for zeros, \
         the first at {first}"
    );
    let note = Some(Note::incomplete("kernel image", text));
    if missing == seen { (Cow::Borrowed(&[]), note) } else { (Cow::Owned(copy), note) }
}

/// The read-only mappings of the image, as byte ranges relative to its start.
fn read_only_parts(image: &ImageSpan, space: &KernelSpace) -> Vec<Range<usize>> {
    let last = Gva(image.gva.0.saturating_add(image.bytes.saturating_sub(1)));
    let runs = space.runs_in(image.gva, last).iter();
    let parts = runs.filter(|run| !run.rights.write && !run.rights.execute).filter_map(|run| {
        let start = usize::try_from(run.gva.0.checked_sub(image.gva.0)?).ok()?;
        let end = start.checked_add(usize::try_from(run.bytes).ok()?)?;
        Some(start..end)
    });
    parts.collect()
}

/// Number of pages read, number of missing pages, and the first missing page.
#[derive(Debug, Default)]
struct Pages {
    seen: u64,
    missing: u64,
    first: Option<Gpa>,
}

impl Pages {
    /// Reads from `gpa` up; missing pages are zeros.
    fn read(&mut self, memory: &dyn GuestMemory, gpa: Gpa, bytes: &mut [u8]) {
        let pages = bytes.len().div_ceil(FRAME_BYTES) as u64;
        if memory.read(gpa, bytes).is_ok() {
            self.seen = self.seen.saturating_add(pages);
            return;
        }
        let mut at = Some(gpa);
        for page in bytes.chunks_mut(FRAME_BYTES) {
            self.seen = self.seen.saturating_add(1);
            if at.is_none_or(|gpa| memory.read(gpa, page).is_err()) {
                // A read that failed half-way may have written bytes of another page.
                page.fill(0);
                self.missing = self.missing.saturating_add(1);
                self.first = self.first.or(at);
            }
            at = at.and_then(|at| at.checked_add(FRAME_SIZE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemoryError, MemoryLayout};

    /// Memory of eight pages, some of them missing.
    struct Dump {
        layout: MemoryLayout,
        missing: Vec<u64>,
    }

    impl GuestMemory for Dump {
        fn layout(&self) -> &MemoryLayout {
            &self.layout
        }

        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
            // The bytes before a missing page are still written.
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
        let (bytes, note) =
            image_bytes(&dump, &image, &KernelSpace::default(), ImagePart::ReadOnly);
        (bytes.into_owned(), note.map(|note| note.to_string()))
    }

    #[test]
    fn missing_pages_are_zeros_and_reported() {
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
