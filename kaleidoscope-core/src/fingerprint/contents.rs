//! Reads frames and hashes them, on several threads.

use super::{Domain, Fingerprint, PartialHash};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::memory::{GuestMemory, MemoryError, Page, read_page};
use std::num::NonZeroUsize;

/// Number of frames below which another thread costs more than it saves.
const FRAMES_PER_THREAD: usize = 256;

/// The contents of a frame, identified by a hash of type `H`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content<H = Fingerprint> {
    /// The image lacks the frame.
    Missing,
    /// All zeros. Such a frame is neither hashed nor shared: zero pages need no sharing.
    Zero,
    /// Any other contents.
    Page(H),
}

/// The contents of these frames, in their order. Reads each frame once, on up to `threads` threads;
/// takes one page of memory per thread beside the result. Frames past the end of RAM count as
/// missing.
///
/// # Errors
/// The first [`MemoryError`] other than [`MemoryError::Missing`].
pub fn contents(
    memory: &dyn GuestMemory,
    frames: &[FrameIndex],
    domain: &Domain,
    threads: NonZeroUsize,
) -> Result<Vec<Content>, MemoryError> {
    hash_all(memory, frames, threads, &|page| domain.content(page))
}

/// The partial contents of these frames: as [`contents`], but hashes only some lines of each page,
/// at a small part of the cost. From memory that can be [borrowed](GuestMemory::slice), it reads
/// only these lines, and the zeros before the first and after the last nonzero line.
///
/// # Errors
/// The first [`MemoryError`] other than [`MemoryError::Missing`].
pub fn partial_contents(
    memory: &dyn GuestMemory,
    frames: &[FrameIndex],
    domain: &Domain,
    threads: NonZeroUsize,
) -> Result<Vec<Content<PartialHash>>, MemoryError> {
    hash_all(memory, frames, threads, &|page| domain.partial_content(page))
}

type HashPage<'a, H> = &'a (dyn Fn(&Page) -> Content<H> + Sync);

fn hash_all<H: Copy + Send>(
    memory: &dyn GuestMemory,
    frames: &[FrameIndex],
    threads: NonZeroUsize,
    hash: HashPage<'_, H>,
) -> Result<Vec<Content<H>>, MemoryError> {
    let mut found = vec![Content::Missing; frames.len()];
    let threads = threads.get().min(frames.len().div_ceil(FRAMES_PER_THREAD)).max(1);
    let share = frames.len().div_ceil(threads).max(1);
    let mut parts = frames.chunks(share).zip(found.chunks_mut(share));
    // The calling thread takes the first part, so that few frames start no thread.
    let first = parts.next();
    std::thread::scope(|scope| {
        let others: Vec<_> =
            parts.map(|(of, to)| scope.spawn(move || fill(memory, of, hash, to))).collect();
        let mut result = first.map_or(Ok(()), |(of, to)| fill(memory, of, hash, to));
        for other in others {
            // A panic in a thread is passed on to the caller.
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
    hash: HashPage<'_, H>,
    found: &mut [Content<H>],
) -> Result<(), MemoryError> {
    let mut buffer: Page = [0; FRAME_BYTES];
    for (frame, found) in frames.iter().zip(found) {
        let Some(gfn) = memory.layout().gfn_of(*frame) else { continue };
        if let Some(page) = read_page(memory, gfn, &mut buffer)? {
            *found = hash(page);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::memory::{MemoryLayout, VecMemory};

    /// Memory that cannot be borrowed, lacks one frame and cannot read another.
    struct UnborrowableMemory {
        memory: VecMemory,
        missing: Gpa,
        broken: Option<Gpa>,
    }

    impl GuestMemory for UnborrowableMemory {
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
        // Frames in any order, some of them twice and some past the end.
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
        let mut memory_with_errors =
            UnborrowableMemory { memory: memory(1000), missing: Gpa(0x2000), broken: None };
        let frames: Vec<_> = (0..1000).map(FrameIndex).collect();
        let domain = Domain::new([1; 32]);
        let threads = NonZeroUsize::new(3).unwrap();
        let found = contents(&memory_with_errors, &frames, &domain, threads).unwrap();
        assert_eq!(found[2], Content::Missing);
        assert!(matches!(found[1], Content::Page(_)));
        memory_with_errors.broken = Some(Gpa(900 << 12));
        let error = contents(&memory_with_errors, &frames, &domain, threads).unwrap_err();
        assert!(matches!(error, MemoryError::Io { gpa: Gpa(0x384000), .. }), "{error}");
    }
}
