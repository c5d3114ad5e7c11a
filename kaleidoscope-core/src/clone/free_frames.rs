//! Whether free frames may be filled with zeros.

use crate::addr::FRAME_BYTES;
use crate::color::{Color, ColorMap, UnknownName};
use crate::memory::{Backing, GuestMemory, MemoryError, data_frames, extents, is_zero};
use std::fmt;
use std::str::FromStr;

/// What becomes of frames that were free in the guest at the freeze, or given back by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum FreeFrames {
    /// They are filled with zeros where the clone runs. The guest's kernel must not rely on what
    /// they held: see [`trust`].
    Zero,
    /// They are fetched as all others: the clone has the parent's memory byte for byte.
    #[default]
    Fetch,
}

impl FreeFrames {
    /// The name used in files and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Fetch => "fetch",
        }
    }

    /// The rule that every place follows which fills frames with zeros: they are filled only where
    /// the map's facts do not contradict each other. Lists that do not close, blocks that
    /// overlap, a former kernel beside the running one: any of it may mean that a frame is
    /// called free and is not, and then all are fetched.
    #[must_use]
    pub fn allowed_by(self, map: &ColorMap) -> Self {
        match map.contradictions() {
            0 => self,
            1.. => Self::Fetch,
        }
    }
}

impl fmt::Display for FreeFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for FreeFrames {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = [Self::Zero, Self::Fetch].into_iter().find(|f| f.name() == name);
        found.ok_or_else(|| {
            UnknownName::with_advice("treatment of free frames", name, "`zero` or `fetch`")
        })
    }
}

/// What free frames hold, and so what the guest's kernel may rely on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// All are zero: filling them with zeros changes nothing.
    Zero,
    /// Some hold the pattern that page poisoning writes, which the kernel checks.
    Poisoned,
    /// They hold what their last users left, on which no kernel relies.
    Leftovers,
    /// None could be looked at.
    Unknown,
    /// The facts behind the map contradict each other, so that a frame which it calls free may be
    /// in use.
    Contradicted,
}

/// What was seen in free frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trust {
    /// What follows from it.
    pub verdict: Verdict,
    /// Frames that were looked at.
    pub sampled: u32,
    /// Those that are all zeros.
    pub zero: u32,
    /// Those that hold the poison.
    pub poisoned: u32,
    /// Free frames that there are.
    pub free: u32,
    /// Contradictions among the facts behind the map.
    pub contradictions: u32,
}

/// Free frames that are looked at, at most: 4 MiB.
const SAMPLE: u32 = 1024;

/// What Linux fills free pages with under page poisoning (`PAGE_POISON`, include/linux/poison.h).
const PAGE_POISON: u8 = 0xaa;

impl Trust {
    /// Whether zeros are as good as what free frames held.
    #[must_use]
    pub fn free_frames(&self) -> FreeFrames {
        match self.verdict {
            Verdict::Zero | Verdict::Leftovers => FreeFrames::Zero,
            Verdict::Poisoned | Verdict::Unknown | Verdict::Contradicted => FreeFrames::Fetch,
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
                "{poisoned} of {sampled} sampled free frames hold the page-poisoning pattern, which the guest checks"
            ),
            Verdict::Leftovers => write!(
                f,
                "{zero} of {sampled} sampled free frames are zero; the others hold what nobody relies on"
            ),
            Verdict::Unknown => write!(f, "none of {free} free frames could be looked at"),
            Verdict::Contradicted => write!(
                f,
                "the coloring noted {contradictions} contradictions, so that frames called free may be in use"
            ),
        }
    }
}

/// Looks at a sample of the frames that a map calls free and says whether the guest's kernel relies
/// on what they hold.
///
/// A kernel that allocates a page overwrites it or clears it, so that what a free page holds is
/// nobody's concern. Linux has two modes in which it is:
///
/// - `init_on_free=1` clears pages when they are freed, and then does not clear them when they are
///   allocated. Zeros in place of the pages are exactly what the kernel expects: they *are* zeros.
///   That shows in the sample, all of which is zero.
/// - `page_poison=1` fills pages with 0xaa when they are freed, and looks at allocation whether
///   they still are; zeros look like a stray write, which it reports. That shows as well: there are
///   pages full of 0xaa. One is enough to refuse, though chance may have left it: fetching a page
///   too many costs time, a wrong page is wrong.
///
/// Linux's own balloon driver draws the same line: it tells the host what it fills free pages with,
/// and reports no free pages where it cannot (`virtballoon_validate`,
/// drivers/virtio/virtio_balloon.c).
///
/// Zeros may be trusted only as far as the map may: a frame that is called free must be. So a map
/// whose facts contradict each other is not trusted, whatever its free frames hold
/// ([`FreeFrames::allowed_by`]). Looks at 1024 frames at most.
///
/// # Errors
/// [`MemoryError`] when a frame cannot be read. A frame that the image does not hold
/// ([`MemoryError::Missing`]) is left out.
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
    // Holes are known to be zeros, so the sample is of what is stored: among many holes a few
    // poisoned frames would not be found.
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
        // A few bytes may have been written by mistake, which is what poisoning is there to find.
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

/// Whether the n-th free frame is in the sample: one of every `step`, at places that follow no
/// pattern, since what frames hold may well follow one.
fn is_sampled(n: u32, step: u32) -> bool {
    // Knuth's multiplicative hash (The Art of Computer Programming, volume 3, section 6.4).
    let place = (n / step).wrapping_mul(2_654_435_769) >> 8;
    n % step == place % step
}
