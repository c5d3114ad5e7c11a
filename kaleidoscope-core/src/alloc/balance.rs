//! A clone's granted and used frames in one atomic word.

use super::CHUNK_FRAMES;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of the word that count used frames; the remaining bits count chunks.
const USED_BITS: u32 = 36;

/// Mask of the bits that count used frames.
const USED_MASK: u64 = (1 << USED_BITS) - 1;

/// Beyond this many used frames, four times what a clone can have, no more are counted: only a
/// faulty caller takes them.
pub(super) const MAX_USED: u64 = 1 << 34;

// Concurrent callers may exceed it by 2^32 frames each.
const _: () = assert!(MAX_USED < USED_MASK / 2 && USED_MASK / CHUNK_FRAMES < 1 << (63 - USED_BITS));

/// A clone's granted and used frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Balance {
    /// Chunks granted by the host.
    pub(super) chunks: u64,
    /// Frames in use, at most those in the chunks.
    pub(super) used: u64,
}

impl Balance {
    /// Frames granted by the host.
    pub(super) fn granted(self) -> u64 {
        self.chunks * CHUNK_FRAMES
    }

    /// Granted frames that are not in use.
    pub(super) fn spare(self) -> u64 {
        self.granted().saturating_sub(self.used)
    }

    /// This balance with `frames` more in use, saturating.
    pub(super) fn with_used(self, frames: u64) -> Self {
        Self { used: self.used.saturating_add(frames).min(USED_MASK), ..self }
    }

    /// This balance without whole spare chunks, except `keep` of them.
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

/// A balance shared between threads.
#[derive(Debug, Default)]
pub(super) struct SharedBalance(AtomicU64);

impl SharedBalance {
    /// The current balance.
    pub(super) fn get(&self) -> Balance {
        Balance::unpack(self.0.load(Ordering::Acquire))
    }

    /// Replaces the balance with the result of `change`, unless that is `None`. Returns the balance
    /// before and after.
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
