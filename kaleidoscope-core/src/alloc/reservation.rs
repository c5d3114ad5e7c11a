//! A clone's reservation of its host's memory.

use super::account::Account;
use super::balance::{Balance, MAX_USED};
use super::{CHUNK_FRAMES, CloneLimits, Host, Pressure};
use std::sync::Arc;

/// A clone's share of its host's memory. Dropping it returns everything.
///
/// The reservation counts the frames in use; the host counts the chunks that hold them. All methods
/// may be called from many threads at once.
#[derive(Debug)]
#[must_use = "a clone holds its reservation as long as it uses memory"]
pub struct Reservation {
    host: Arc<Host>,
    account: Arc<Account>,
}

impl Reservation {
    pub(super) fn new(host: Arc<Host>, account: Arc<Account>) -> Self {
        Self { host, account }
    }

    /// Takes frames for a fault, or for another need that cannot wait. Never fails: frames beyond a
    /// limit are counted as [overdraft](Self::overdraft).
    pub fn take_for_fault(&self, frames: u32) {
        if self.used() >= MAX_USED {
            return;
        }
        let frames = u64::from(frames);
        // Granted chunks are added and used in one step, so that no other thread returns them as
        // surplus in between. No more chunks are requested than `frames` need, so the loop ends
        // however many threads take at once.
        let mut granted = 0;
        let taken = loop {
            let mut spare = 0;
            let taken = self.account.balance.change(|balance| {
                let balance = Balance { chunks: balance.chunks + granted, ..balance };
                spare = balance.spare();
                (spare >= frames).then(|| balance.with_used(frames))
            });
            if taken.is_some() {
                break taken;
            }
            let missing = frames.saturating_sub(spare).div_ceil(CHUNK_FRAMES);
            self.host.grant_for_fault(missing);
            granted += missing;
        };
        self.refresh_level(taken);
    }

    /// Takes up to `frames` frames for prefetch and returns how many it took: all of them if memory
    /// is sufficient, spare frames of the clone's chunks under [`Pressure::ShrinkPrefetch`], and 0
    /// from [`Pressure::Reclaim`] on. Never exceeds a limit.
    #[must_use]
    pub fn take_for_prefetch(&self, frames: u32) -> u64 {
        let level = self.pressure();
        if level >= Pressure::Reclaim {
            return 0;
        }
        let wanted = |balance: Balance| {
            let limit = self.account.limits.frames.min(MAX_USED);
            u64::from(frames).min(limit.saturating_sub(balance.used))
        };
        let take = |balance: Balance| {
            let frames = wanted(balance).min(balance.spare());
            (frames > 0).then(|| balance.with_used(frames))
        };
        let balance = self.account.balance.get();
        let missing = wanted(balance).saturating_sub(balance.spare());
        if missing > 0 && level == Pressure::None {
            let chunks = self.host.grant_for_prefetch(missing.div_ceil(CHUNK_FRAMES));
            if chunks > 0 {
                let add =
                    |balance: Balance| Some(Balance { chunks: balance.chunks + chunks, ..balance });
                self.account.balance.change(add);
            }
        }
        let taken = self.account.balance.change(take);
        self.refresh_level(taken);
        taken.map_or(0, |(before, after)| after.used - before.used)
    }

    /// Returns frames that were taken. The count of used frames stops at 0.
    pub fn give_back(&self, frames: u32) {
        // One spare chunk is kept for later frames, unless memory is scarce.
        let keep = u64::from(self.pressure() < Pressure::Reclaim);
        let returned = self.account.balance.change(|balance| {
            let used = balance.used.saturating_sub(u64::from(frames));
            Some(Balance { used, ..balance }.without_surplus(keep))
        });
        self.refresh_level(returned);
        if let Some((before, after)) = returned {
            self.host.return_frames((before.chunks - after.chunks) * CHUNK_FRAMES);
        }
    }

    /// The pressure on this clone: the maximum of its host's and its own. One atomic load.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.account.level()
    }

    /// Calls `callback` with the level of [`Reservation::pressure`] whenever the level differs from
    /// that of the last call, and at once unless it is [`Pressure::None`]. The callback is removed
    /// when the reservation is dropped.
    ///
    /// The callback runs without a lock, on the thread that takes or returns frames for this or
    /// another clone. A host runs one callback at a time, so a callback should be short: set a
    /// flag, wake a thread, return frames. If levels change faster than callbacks return,
    /// intermediate levels are skipped; the last level is always delivered.
    pub fn on_pressure(&self, callback: Box<dyn Fn(Pressure) + Send + Sync>) {
        self.account.listen(callback);
        self.host.deliveries.push(&self.account);
        self.host.deliveries.run();
    }

    /// Frames that the clone uses.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.account.balance.get().used
    }

    /// Frames granted to the clone: a multiple of [`CHUNK_FRAMES`].
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.account.balance.get().granted()
    }

    /// Frames in use beyond the clone's limit, because of faults.
    #[must_use]
    pub fn overdraft(&self) -> u64 {
        self.used().saturating_sub(self.account.limits.frames)
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> CloneLimits {
        self.account.limits
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Recomputes the clone's level if the change of its balance crossed a mark.
    fn refresh_level(&self, change: Option<(Balance, Balance)>) {
        if let Some((before, after)) = change
            && self.account.marks.is_between(before.used, after.used)
        {
            self.host.refresh(&self.account);
            self.host.deliveries.run();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.clear_listeners();
        self.host.close(&self.account);
    }
}
