//! Reading frames and naming their bytes, on several threads.

use super::{Domain, Fingerprint, PartialHash};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::memory::{GuestMemory, MemoryError, Page, read_page};
use std::num::NonZeroUsize;

/// Frames below which another thread costs more than it saves.
const FRAMES_PER_THREAD: usize = 256;

/// What a frame holds, under a name of the kind `H`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content<H = Fingerprint> {
    /// The image lacks the frame.
    Missing,
    /// Nothing but zeros. Such a frame is never hashed and never shared: everybody has a page of
    /// zeros.
    Zero,
    /// Anything else.
    Page(H),
}

/// What these frames hold, in their order. Reads each frame once, on up to `threads` threads, with
/// one page of memory for each beside the result. Frames past the end of RAM count as missing.
///
/// # Errors
/// The first [`MemoryError`] but [`MemoryError::Missing`].
pub fn contents(
    memory: &dyn GuestMemory,
    frames: &[FrameIndex],
    domain: &Domain,
    threads: NonZeroUsize,
) -> Result<Vec<Content>, MemoryError> {
    name_all(memory, frames, threads, &|page| domain.content(page))
}

/// What these frames may hold, by some lines of each page: as [`contents`], for a small part of the
/// cost. Of memory that can be [borrowed](GuestMemory::slice), only those lines are read, and what
/// comes before the first and after the last line that is not zero.
///
/// # Errors
/// The first [`MemoryError`] but [`MemoryError::Missing`].
pub fn partial_contents(
    memory: &dyn GuestMemory,
    frames: &[FrameIndex],
    domain: &Domain,
    threads: NonZeroUsize,
) -> Result<Vec<Content<PartialHash>>, MemoryError> {
    name_all(memory, frames, threads, &|page| domain.partial_content(page))
}

type Name<'a, H> = &'a (dyn Fn(&Page) -> Content<H> + Sync);

fn name_all<H: Copy + Send>(
    memory: &dyn GuestMemory,
    frames: &[FrameIndex],
    threads: NonZeroUsize,
    name: Name<'_, H>,
) -> Result<Vec<Content<H>>, MemoryError> {
    let mut found = vec![Content::Missing; frames.len()];
    let threads = threads.get().min(frames.len().div_ceil(FRAMES_PER_THREAD)).max(1);
    let share = frames.len().div_ceil(threads).max(1);
    let mut parts = frames.chunks(share).zip(found.chunks_mut(share));
    // The calling thread does the first part, so that few frames cost no thread at all.
    let first = parts.next();
    std::thread::scope(|scope| {
        let others: Vec<_> =
            parts.map(|(of, to)| scope.spawn(move || fill(memory, of, name, to))).collect();
        let mut result = first.map_or(Ok(()), |(of, to)| fill(memory, of, name, to));
        for other in others {
            // A panic in a reader is the caller's, as it would be on one thread.
            let done = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(done);
        }
        result
    })?;
    Ok(found)
}

fn fill<H>(
    memory: &dyn GuestMemory,
    frames: &[FrameIndex],
    name: Name<'_, H>,
    found: &mut [Content<H>],
) -> Result<(), MemoryError> {
    let mut buffer: Page = [0; FRAME_BYTES];
    for (frame, found) in frames.iter().zip(found) {
        let Some(gfn) = memory.layout().gfn_of(*frame) else { continue };
        if let Some(page) = read_page(memory, gfn, &mut buffer)? {
            *found = name(page);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::memory::{MemoryLayout, VecMemory};

    /// Memory that must be read, lacks one frame and cannot read another.
    struct Hard {
        memory: VecMemory,
        missing: Gpa,
        broken: Option<Gpa>,
    }

    impl GuestMemory for Hard {
        fn layout(&self) -> &MemoryLayout {
            self.memory.layout()
        }
        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
            if gpa == self.missing {
                return Err(MemoryError::Missing { gpa, len: buf.len() });
            }
            if Some(gpa) == self.broken {
                return Err(MemoryError::Io { gpa, source: std::io::Error::other("bad disk") });
            }
            self.memory.read(gpa, buf)
        }
    }

    fn memory(frames: u64) -> VecMemory {
        let mut memory = VecMemory::zeroed(MemoryLayout::contiguous(frames * 4096).unwrap());
        for (number, page) in memory.bytes_mut().chunks_mut(4096).enumerate() {
            if number % 3 != 0 {
                page[17] = u8::try_from(number % 251).unwrap() + 1;
            }
        }
        memory
    }

    #[test]
    fn any_number_of_threads_finds_the_same() {
        let memory = memory(2000);
        let domain = Domain::new([1; 32]);
        // Some twice, some past the end, in no order.
        let frames: Vec<_> = (0..2100u32).map(|n| FrameIndex((n * 37) % 2050)).collect();
        let with = |threads| {
            contents(&memory, &frames, &domain, NonZeroUsize::new(threads).unwrap()).unwrap()
        };
        let found = with(1);
        assert_eq!(found, with(2));
        assert_eq!(found, with(7));
        for (frame, content) in frames.iter().zip(&found) {
            let page = memory.bytes().chunks(4096).nth(frame.as_usize());
            let expected = match page.map(|page| <&Page>::try_from(page).unwrap()) {
                None => Content::Missing,
                Some(_) if frame.0 % 3 == 0 => Content::Zero,
                Some(page) => Content::Page(domain.fingerprint(page)),
            };
            assert_eq!(*content, expected, "{frame:?}");
        }
        assert!(contents(&memory, &[], &domain, NonZeroUsize::MIN).unwrap().is_empty());
    }

    #[test]
    fn frames_that_the_image_lacks_are_no_failure_and_broken_ones_are() {
        let mut hard = Hard { memory: memory(1000), missing: Gpa(0x2000), broken: None };
        let frames: Vec<_> = (0..1000).map(FrameIndex).collect();
        let domain = Domain::new([1; 32]);
        let threads = NonZeroUsize::new(3).unwrap();
        let found = contents(&hard, &frames, &domain, threads).unwrap();
        assert_eq!(found[2], Content::Missing);
        assert!(matches!(found[1], Content::Page(_)));
        hard.broken = Some(Gpa(900 << 12));
        let error = contents(&hard, &frames, &domain, threads).unwrap_err();
        assert!(matches!(error, MemoryError::Io { gpa: Gpa(0x384000), .. }), "{error}");
    }
}
