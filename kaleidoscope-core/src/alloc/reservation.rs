//! What a clone holds of its host's memory.

use super::account::Account;
use super::balance::{Balance, MAX_USED};
use super::{CHUNK_FRAMES, CloneLimits, Host, Pressure};
use std::sync::Arc;

/// One clone's share of its host's memory. Dropping it returns everything.
///
/// Counts the frames that the clone uses; the host counts the chunks that they lie in. All methods
/// may be called by many threads at once.
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

    /// Takes frames for a fault, or any other need that cannot wait. Never fails: where a limit is
    /// reached, they are taken beyond it and counted as [overdraft](Self::overdraft).
    pub fn take_for_fault(&self, frames: u32) {
        if self.used() >= MAX_USED {
            return;
        }
        let frames = u64::from(frames);
        // Chunks drawn are added together with taking: nobody returns them as surplus before. No
        // more are drawn than all of the frames need, so this ends, however many take at
        // once.
        let mut drawn = 0;
        let taken = loop {
            let mut spare = 0;
            let taken = self.account.balance.change(|balance| {
                let balance = Balance { chunks: balance.chunks + drawn, ..balance };
                spare = balance.spare();
                (spare >= frames).then(|| balance.with_used(frames))
            });
            if taken.is_some() {
                break taken;
            }
            let missing = frames.saturating_sub(spare).div_ceil(CHUNK_FRAMES);
            self.host.draw_for_fault(missing);
            drawn += missing;
        };
        self.after(taken);
    }

    /// Takes up to this many frames for prefetch and returns how many: all of them where there is
    /// enough; what the clone's chunks still hold under [`Pressure::ShrinkPrefetch`]; none from
    /// [`Pressure::Reclaim`] on. Never goes beyond a limit.
    #[must_use]
    pub fn take_for_prefetch(&self, frames: u32) -> u64 {
        let level = self.pressure();
        if level >= Pressure::Reclaim {
            return 0;
        }
        let wanted = |balance: Balance| {
            let most = self.account.limits.frames.min(MAX_USED);
            u64::from(frames).min(most.saturating_sub(balance.used))
        };
        let take = |balance: Balance| {
            let frames = wanted(balance).min(balance.spare());
            (frames > 0).then(|| balance.with_used(frames))
        };
        let balance = self.account.balance.get();
        let missing = wanted(balance).saturating_sub(balance.spare());
        if missing > 0 && level == Pressure::None {
            let chunks = self.host.draw_for_prefetch(missing.div_ceil(CHUNK_FRAMES));
            if chunks > 0 {
                let add =
                    |balance: Balance| Some(Balance { chunks: balance.chunks + chunks, ..balance });
                self.account.balance.change(add);
            }
        }
        let taken = self.account.balance.change(take);
        self.after(taken);
        taken.map_or(0, |(before, after)| after.used - before.used)
    }

    /// Gives frames back that were taken. More than that is not counted.
    pub fn give_back(&self, frames: u32) {
        // A spare chunk is kept for the next frames, unless others need it.
        let keep = u64::from(self.pressure() < Pressure::Reclaim);
        let given = self.account.balance.change(|balance| {
            let used = balance.used.saturating_sub(u64::from(frames));
            Some(Balance { used, ..balance }.without_surplus(keep))
        });
        self.after(given);
        if let Some((before, after)) = given {
            self.host.put_back((before.chunks - after.chunks) * CHUNK_FRAMES);
        }
    }

    /// How scarce memory is, for this clone: on its host, or under its own limit. One atomic load.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.account.level()
    }

    /// Has `callback` called with the level of [`Reservation::pressure`] whenever it is another one
    /// than at the last call, and at once unless it is [`Pressure::None`]. It is removed when
    /// the reservation is dropped.
    ///
    /// Called without a lock, by whichever thread takes or gives frames, of this clone or another
    /// one, and by one thread of the host at a time; so it should be short: set a flag, wake a
    /// thread, give frames back. Where levels change faster than callbacks return, levels in
    /// between are left out; the last one never is.
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

    /// Frames that it holds: a multiple of [`CHUNK_FRAMES`].
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.account.balance.get().granted()
    }

    /// Frames that it uses beyond its limit, because of faults.
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

    /// Computes the clone's level anew if a change of its balance may have changed it.
    fn after(&self, change: Option<(Balance, Balance)>) {
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
        self.account.silence();
        self.host.close(&self.account);
    }
}
