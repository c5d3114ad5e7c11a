//! Self-checking bytes: every byte of a page is a function of its image, frame, generation and
//! offset.
//!
//! A page is 256 blocks of 16 bytes. A block is an invertible scrambling of its identity (image,
//! frame, generation, number of the block). Bytes of different pages are equal only by chance, and
//! a misplaced block can be traced to where it belongs.

use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::memory::{Page, ZERO_PAGE};
use std::fmt;

/// Bytes of a block.
const BLOCK: usize = 16;

/// Number of blocks after which a repetitive page repeats.
const PERIOD: usize = 16;

/// Constant part of every block, which identifies a block.
const TAG: u64 = 0x4b;

/// Content of a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// All zeros.
    Zero,
    /// A repeated sequence of 256 bytes; compresses well.
    Repetitive,
    /// Pseudorandom bytes; does not compress.
    Dense,
}

/// Contents of a whole image: a page for every frame and generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pattern {
    image: u64,
    zero: u8,
    repetitive: u8,
}

/// Where a block of bytes comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// The image.
    pub image: u64,
    /// The frame.
    pub frame: FrameIndex,
    /// The generation: 0 is the initial content of the image, higher ones were written later.
    pub generation: u16,
    /// Offset in the page in bytes; within the first period on a repetitive page.
    pub offset: usize,
}

impl Pattern {
    /// Dense pages for every frame of the image.
    #[must_use]
    pub const fn new(image: u64) -> Self {
        Self { image, zero: 0, repetitive: 0 }
    }

    /// The given percentages of pages are zero and repetitive; all others are dense.
    #[must_use]
    pub const fn with(self, zero: u8, repetitive: u8) -> Self {
        Self { image: self.image, zero, repetitive }
    }

    /// The image.
    #[must_use]
    pub const fn image(&self) -> u64 {
        self.image
    }

    /// The kind of content of a page.
    #[must_use]
    pub fn kind(&self, frame: FrameIndex, generation: u16) -> Kind {
        let seed = u64::from(frame.0) << 16 | u64::from(generation);
        let percent = mix(self.image ^ mix(seed)) % 100;
        let zero = u64::from(self.zero);
        if percent < zero {
            Kind::Zero
        } else if percent < zero + u64::from(self.repetitive) {
            Kind::Repetitive
        } else {
            Kind::Dense
        }
    }

    /// The content of a page.
    #[must_use]
    pub fn page(&self, frame: FrameIndex, generation: u16) -> Page {
        let period = match self.kind(frame, generation) {
            Kind::Zero => return ZERO_PAGE,
            Kind::Repetitive => PERIOD,
            Kind::Dense => usize::MAX,
        };
        let mut page = ZERO_PAGE;
        for (number, block) in page.chunks_exact_mut(BLOCK).enumerate() {
            let offset = number % period * BLOCK;
            let origin = Origin { image: self.image, frame, generation, offset };
            block.copy_from_slice(&origin.block());
        }
        page
    }

    /// Checks bytes that were read at an offset of a frame.
    ///
    /// # Errors
    /// [`Mismatch`] describes the first wrong byte. Bytes past the end of the page are wrong.
    pub fn verify(
        &self,
        frame: FrameIndex,
        generation: u16,
        offset: usize,
        found: &[u8],
    ) -> Result<(), Mismatch> {
        let page = self.page(frame, generation);
        compare(frame, offset, page.get(offset..).unwrap_or_default(), found)
    }
}

/// The content of a page in an image of dense pages.
#[must_use]
pub fn page(image: u64, frame: FrameIndex, generation: u16) -> Page {
    Pattern::new(image).page(frame, generation)
}

/// Compares bytes read at an offset of a frame with the expected ones.
///
/// # Errors
/// [`Mismatch`] describes the first wrong byte.
pub fn compare(
    frame: FrameIndex,
    offset: usize,
    expected: &[u8],
    found: &[u8],
) -> Result<(), Mismatch> {
    let wrong = |at: &usize| expected.get(*at) != found.get(*at);
    let Some(at) = (0..found.len()).find(wrong) else { return Ok(()) };
    // The block of the wrong byte, or the next one if the block was not read from its start.
    let before = (offset + at) % BLOCK;
    let block = at.checked_sub(before).unwrap_or(at + BLOCK - before);
    let block =
        found.get(block..block + BLOCK).filter(|b| expected.get(block..block + BLOCK) != Some(b));
    let origin = block.and_then(Origin::of_block);
    let rest = found.get(at..).unwrap_or_default();
    let looks_like = match origin {
        Some(origin) => LooksLike::Page(origin),
        None if rest.iter().take(64).all(|byte| *byte == 0) => LooksLike::Zeros,
        None => LooksLike::Damage { wrong: (at..found.len()).filter(wrong).count() },
    };
    Err(Mismatch {
        frame,
        offset: offset + at,
        expected: expected.get(at).copied(),
        found: found.get(at).copied().unwrap_or_default(),
        looks_like,
    })
}

/// Diagnosis of wrong bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LooksLike {
    /// Zeros: the frame was never filled, or was emptied.
    Zeros,
    /// Part of a pattern page, possibly of another frame, image or generation.
    Page(Origin),
    /// Unknown bytes.
    Damage {
        /// How many of the bytes read are wrong.
        wrong: usize,
    },
}

/// A byte differs from the expected one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub struct Mismatch {
    /// The frame that was read.
    pub frame: FrameIndex,
    /// Offset in the page of the first wrong byte.
    pub offset: usize,
    /// The expected byte; `None` past the end of the page.
    pub expected: Option<u8>,
    /// The byte read.
    pub found: u8,
    /// Diagnosis of the bytes from there on.
    pub looks_like: LooksLike,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}, byte {:#x}: {:#04x}", self.frame, self.offset, self.found)?;
        match self.expected {
            Some(expected) => write!(f, " instead of {expected:#04x}, ")?,
            None => f.write_str(" past the end of the page, ")?,
        }
        match self.looks_like {
            LooksLike::Zeros => f.write_str("zeros from there on"),
            LooksLike::Page(origin) => write!(f, "which belongs to {origin}"),
            LooksLike::Damage { wrong } => write!(f, "{wrong} wrong bytes of no known page"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, frame, generation, offset } = self;
        write!(f, "image {image:#x}, frame {frame}, generation {generation}, byte {offset:#x}")
    }
}

impl Origin {
    /// The block at this origin.
    fn block(&self) -> [u8; BLOCK] {
        let number = (self.offset / BLOCK) as u64 & 0xff;
        let identity =
            u64::from(self.frame.0) << 32 | u64::from(self.generation) << 16 | number << 8 | TAG;
        let (mut left, mut right) = (self.image, identity);
        for round in ROUNDS {
            (left, right) = (right, left ^ mix(right ^ round));
        }
        let mut block = [0; BLOCK];
        let (low, high) = block.split_at_mut(8);
        low.copy_from_slice(&left.to_le_bytes());
        high.copy_from_slice(&right.to_le_bytes());
        block
    }

    /// Decodes a 16-byte block that starts at a multiple of 16; `None` if it is not a block of a
    /// pattern.
    #[must_use]
    pub fn of_block(block: &[u8]) -> Option<Self> {
        let mut left = u64::from_le_bytes(*block.first_chunk()?);
        let mut right = u64::from_le_bytes(*block.get(8..)?.first_chunk()?);
        for round in ROUNDS.iter().rev() {
            (left, right) = (right ^ mix(left ^ round), left);
        }
        let frame = FrameIndex(u32::try_from(right >> 32).ok()?);
        let generation = u16::try_from(right >> 16 & 0xffff).ok()?;
        let offset = usize::try_from(right >> 8 & 0xff).ok()? * BLOCK;
        (right & 0xff == TAG).then_some(Self { image: left, frame, generation, offset })
    }
}

/// Round keys of a Feistel network: after four rounds, every bit depends on every other. The values
/// are arbitrary (digits of pi).
const ROUNDS: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

/// The finalizer of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const _: () = assert!(FRAME_BYTES / BLOCK == 256);

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: FrameIndex = FrameIndex(77);

    #[test]
    fn blocks_say_where_they_belong() {
        let page = page(5, FRAME, 3);
        for (number, block) in page.chunks(BLOCK).enumerate() {
            let origin = Origin::of_block(block).unwrap();
            let offset = number * BLOCK;
            assert_eq!(origin, Origin { image: 5, frame: FRAME, generation: 3, offset });
        }
        assert_eq!(Origin::of_block(&[0; BLOCK]), None);
        assert_eq!(Origin::of_block(&page[..15]), None);
    }

    #[test]
    fn bytes_differ_from_page_to_page() {
        let base = page(5, FRAME, 0);
        for other in [page(6, FRAME, 0), page(5, FrameIndex(78), 0), page(5, FRAME, 1)] {
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 60, "one byte of 256 by chance: {same}");
        }
    }

    #[test]
    fn kinds_come_in_the_shares_asked_for() {
        let pattern = Pattern::new(9).with(30, 20);
        let kinds: Vec<_> = (0..10_000).map(|f| pattern.kind(FrameIndex(f), 0)).collect();
        let share = |kind| kinds.iter().filter(|k| **k == kind).count() / 100;
        assert!((28..=32).contains(&share(Kind::Zero)), "{}", share(Kind::Zero));
        assert!((18..=22).contains(&share(Kind::Repetitive)), "{}", share(Kind::Repetitive));
        let at = |kind| {
            FrameIndex(u32::try_from(kinds.iter().position(|k| *k == kind).unwrap()).unwrap())
        };
        assert_eq!(pattern.page(at(Kind::Zero), 0), ZERO_PAGE);
        let page = pattern.page(at(Kind::Repetitive), 0);
        assert_eq!(page[..256], page[256..512]);
        assert_ne!(page[..128], page[128..256]);
    }

    #[test]
    fn mismatches_are_explained() {
        let pattern = Pattern::new(5);
        let right = pattern.page(FRAME, 0);
        for (offset, len) in [(0, 4096), (13, 1), (16, 16), (1000, 99), (4096, 0)] {
            assert_eq!(pattern.verify(FRAME, 0, offset, &right[offset..offset + len]), Ok(()));
        }
        let text =
            |offset, found: &[u8]| pattern.verify(FRAME, 0, offset, found).unwrap_err().to_string();
        assert!(text(0, &ZERO_PAGE).ends_with("zeros from there on"), "{}", text(0, &ZERO_PAGE));
        let other = page(0x42, FrameIndex(9), 2);
        let told = text(100, &other[100..300]);
        assert!(told.contains("image 0x42, frame 9, generation 2"), "{told}");
        let mut damaged = right;
        damaged[0x123] ^= 1;
        let told = text(0, &damaged);
        assert!(told.starts_with("frame 77, byte 0x123: "), "{told}");
        damaged[0x124] ^= 1;
        let mismatch = pattern.verify(FRAME, 0, 0x120, &damaged[0x120..0x130]).unwrap_err();
        assert_eq!(mismatch.looks_like, LooksLike::Damage { wrong: 2 });
        let past = pattern.verify(FRAME, 0, 4095, &[right[4095], 7]).unwrap_err();
        assert_eq!((past.offset, past.expected), (4096, None));
    }
}
