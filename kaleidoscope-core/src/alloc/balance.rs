//! What a clone holds and uses, in one atomic word.

use super::CHUNK_FRAMES;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of the word that count used frames; the others count chunks.
const USED_BITS: u32 = 36;

/// The bits that count used frames.
const USED_MASK: u64 = (1 << USED_BITS) - 1;

/// From this many frames on, four times as many as a clone can have, no more are counted: only a
/// wrong caller takes them.
pub(super) const MAX_USED: u64 = 1 << 34;

// Threads that take at once may pass it by 2^32 frames each.
const _: () = assert!(MAX_USED < USED_MASK / 2 && USED_MASK / CHUNK_FRAMES < 1 << (63 - USED_BITS));

/// What a clone holds and uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Balance {
    /// Chunks that the host gave.
    pub(super) chunks: u64,
    /// Frames in use, no more than the chunks hold.
    pub(super) used: u64,
}

impl Balance {
    /// Frames that the host gave.
    pub(super) fn granted(self) -> u64 {
        self.chunks * CHUNK_FRAMES
    }

    /// Frames that are neither used nor with the host.
    pub(super) fn spare(self) -> u64 {
        self.granted().saturating_sub(self.used)
    }

    /// With this many more frames in use, at most.
    pub(super) fn with_used(self, frames: u64) -> Self {
        Self { used: self.used.saturating_add(frames).min(USED_MASK), ..self }
    }

    /// Without whole spare chunks, but for `keep` of them.
    pub(super) fn without_surplus(self, keep: u64) -> Self {
        let surplus = (self.spare() / CHUNK_FRAMES).saturating_sub(keep);
        Self { chunks: self.chunks - surplus, ..self }
    }

    fn pack(self) -> u64 {
        self.chunks << USED_BITS | self.used
    }

    fn unpack(word: u64) -> Self {
        Self { chunks: word >> USED_BITS, used: word & USED_MASK }
    }
}

/// A balance that threads share.
#[derive(Debug, Default)]
pub(super) struct SharedBalance(AtomicU64);

impl SharedBalance {
    /// The balance now.
    pub(super) fn get(&self) -> Balance {
        Balance::unpack(self.0.load(Ordering::Acquire))
    }

    /// Replaces the balance by what `change` makes of it, unless that is `None`. Returns what it
    /// was and is.
    pub(super) fn change(
        &self,
        mut change: impl FnMut(Balance) -> Option<Balance>,
    ) -> Option<(Balance, Balance)> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let before = Balance::unpack(word);
            let after = change(before)?;
            let result = self.0.compare_exchange_weak(
                word,
                after.pack(),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match result {
                Ok(_) => return Some((before, after)),
                Err(now) => word = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for balance in [
            Balance { chunks: 0, used: 0 },
            Balance { chunks: 1, used: 512 },
            Balance { chunks: (1 << 28) - 1, used: USED_MASK },
        ] {
            assert_eq!(Balance::unpack(balance.pack()), balance);
        }
        assert_eq!(Balance { chunks: 1, used: USED_MASK - 1 }.with_used(9).used, USED_MASK);
    }

    #[test]
    fn surplus_is_whole_chunks() {
        let balance = Balance { chunks: 5, used: 513 };
        assert_eq!(balance.spare(), 2047);
        assert_eq!(balance.without_surplus(1).chunks, 3);
        assert_eq!(balance.without_surplus(0).chunks, 2);
        assert_eq!(balance.without_surplus(9), balance);
    }
}
