//! Whether a guest's kernel relies on what its free frames hold.

use crate::addr::FRAME_BYTES;
use crate::color::{Color, ColorMap};
use crate::memory::{Backing, GuestMemory, MemoryError, data_frames, extents, is_zero};
use std::fmt;

/// What the sampled free frames contain, which shows whether the guest's kernel relies on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// All are zero: filling them with zeros changes nothing.
    Zero,
    /// Some hold the pattern that page poisoning writes, which the kernel checks.
    Poisoned,
    /// They hold data of their last users, on which no kernel relies.
    Leftovers,
    /// No free frame could be read.
    Unknown,
    /// The map contains contradictions, so that a frame marked as free may be in use.
    Contradicted,
}

/// Result of [`trust`]: a sample of the free frames. All counts are in frames, except for
/// `contradictions`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trust {
    /// The conclusion from the sample.
    pub verdict: Verdict,
    /// Free frames that were read.
    pub sampled: u32,
    /// Sampled frames that are all zeros.
    pub zero: u32,
    /// Sampled frames that hold the page-poisoning pattern.
    pub poisoned: u32,
    /// Free frames of the guest.
    pub free: u32,
    /// Number of contradictions that the coloring found.
    pub contradictions: u32,
}

/// Maximum sample, in frames: 4 MiB.
const SAMPLE: u32 = 1024;

/// The byte with which Linux fills free pages under page poisoning (`PAGE_POISON`,
/// include/linux/poison.h).
const PAGE_POISON: u8 = 0xaa;

impl Trust {
    /// Whether the guest's kernel does not notice zeros in free frames.
    #[must_use]
    pub fn allows_zeros(&self) -> bool {
        match self.verdict {
            Verdict::Zero | Verdict::Leftovers => true,
            Verdict::Poisoned | Verdict::Unknown | Verdict::Contradicted => false,
        }
    }
}

impl fmt::Display for Trust {
    /// One sentence, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verdict, sampled, zero, poisoned, free, contradictions } = self;
        match verdict {
            Verdict::Zero => write!(f, "all of {sampled} sampled free frames are zero"),
            Verdict::Poisoned => write!(
                f,
                "{poisoned} of {sampled} sampled free frames hold the page-poisoning pattern, \
                 which the guest checks"
            ),
            Verdict::Leftovers => write!(
                f,
                "{zero} of {sampled} sampled free frames are zero; the others hold what \
                 nobody relies on"
            ),
            Verdict::Unknown => write!(f, "none of {free} free frames could be read"),
            Verdict::Contradicted => write!(
                f,
                "the coloring noted {contradictions} contradictions, so that frames called free \
                 may be in use"
            ),
        }
    }
}

/// Reads a sample of the free frames of a map, at most 1024, and decides whether the guest's kernel
/// relies on their contents.
///
/// A kernel normally overwrites or clears a page that it allocates, so that the contents of free
/// pages do not matter. Linux has two modes in which they do:
///
/// - `init_on_free=1` clears pages when they are freed, and does not clear them again when they are
///   allocated. The kernel expects zeros, and zeros are what the frames hold. The whole sample is
///   then zero.
/// - `page_poison=1` fills pages with 0xaa when they are freed, and checks the pattern when they
///   are allocated. The kernel would report zeros as a stray write. The sample then contains pages
///   full of 0xaa. One such page is enough to refuse zeros, even if it is there by chance: fetching
///   free pages costs time, but a wrong page breaks the guest.
///
/// Linux's balloon driver draws the same line: it tells the host with which pattern it fills free
/// pages, and reports no free pages where it cannot (`virtballoon_validate`,
/// drivers/virtio/virtio_balloon.c).
///
/// A map with contradictions may mark frames in use as free, so it is never trusted, whatever its
/// free frames hold.
///
/// # Errors
/// [`MemoryError`] when a frame cannot be read. Frames that the image does not hold
/// ([`MemoryError::Missing`]) are skipped.
pub fn trust(memory: &dyn GuestMemory, map: &ColorMap) -> Result<Trust, MemoryError> {
    let is_free = |frame: u32| map.colors().get(frame as usize) == Some(&Color::Free);
    let count = |backing| {
        let of_memory = extents(memory, 0..map.layout().frames());
        let frames = of_memory.filter(|e| e.backing == backing).flat_map(|e| e.frames);
        u32::try_from(frames.filter(|frame| is_free(*frame)).count()).unwrap_or(u32::MAX)
    };
    let (stored, holes, missing) =
        (count(Backing::Data), count(Backing::Hole), count(Backing::Missing));
    let free = stored.saturating_add(holes).saturating_add(missing);
    // Holes are known to be zeros, so only stored frames are sampled: a few poisoned frames would
    // be missed among many holes.
    let step = stored.div_ceil(SAMPLE).max(1);
    let frames = data_frames(memory).filter(|frame| is_free(frame.0));
    let contradictions = map.contradictions();
    let verdict = Verdict::Unknown;
    let mut seen = Trust { verdict, sampled: 0, zero: 0, poisoned: 0, free, contradictions };
    if stored == 0 {
        (seen.sampled, seen.zero) = (holes, holes);
    }
    let mut page = [0; FRAME_BYTES];
    for (_, frame) in (0..).zip(frames).filter(|(n, _)| is_sampled(*n, step)) {
        let Some(gfn) = map.layout().gfn_of(frame) else { continue };
        match memory.read(gfn.gpa(), &mut page) {
            Ok(()) => {}
            Err(MemoryError::Missing { .. }) => continue,
            Err(error) => return Err(error),
        }
        seen.sampled += 1;
        seen.zero += u32::from(is_zero(&page));
        // A stray write may have changed a few bytes: poisoning exists to find such writes.
        let poison = page.iter().filter(|byte| **byte == PAGE_POISON).count();
        seen.poisoned += u32::from(poison > FRAME_BYTES / 2);
    }
    seen.verdict = match seen {
        Trust { contradictions: 1.., .. } => Verdict::Contradicted,
        Trust { sampled: 0, .. } => Verdict::Unknown,
        Trust { poisoned: 1.., .. } => Verdict::Poisoned,
        Trust { sampled, zero, .. } if sampled == zero => Verdict::Zero,
        Trust { .. } => Verdict::Leftovers,
    };
    Ok(seen)
}

/// Whether the n-th free frame is in the sample. Selects one of every `step` frames, at irregular
/// offsets, because the contents of frames may follow a regular pattern.
fn is_sampled(n: u32, step: u32) -> bool {
    // Knuth's multiplicative hash (The Art of Computer Programming, volume 3, section 6.4).
    let offset = (n / step).wrapping_mul(2_654_435_769) >> 8;
    n % step == offset % step
}
